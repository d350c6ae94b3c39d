//! From a cgroup's path to the container it belongs to. Pure.

use crate::record::ContainerId;

/// The container whose cgroup, or a cgroup within whose cgroup, has this path. All runtimes end the container's own
/// directory with its id; they differ in what stands around it: `<id>` (cgroupfs driver), `cri-containerd-<id>.scope`,
/// `crio-<id>.scope`, `docker-<id>.scope` (systemd driver), `<slice>:cri-containerd:<id>`. Of nested ones the innermost
/// counts.
pub fn container_id(path: &str) -> Option<ContainerId> {
    path.rsplit('/').find_map(|component| {
        let name = component.strip_suffix(".scope").unwrap_or(component);
        ContainerId::new(name.rsplit(['-', ':']).next()?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shape_of_path() {
        let id = "3f9a0b1c".repeat(8);
        let inner = "aa".repeat(32);
        let cases = [
            (format!("/kubepods/besteffort/pod9d7c/{id}"), Some(&id)),
            (format!("/kubepods/pod9d7c/{id}"), Some(&id)),
            (
                format!("/kubepods.slice/kubepods-pod9_d7.slice/cri-containerd-{id}.scope"),
                Some(&id),
            ),
            (
                format!("/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod9.slice/crio-{id}.scope"),
                Some(&id),
            ),
            (format!("/system.slice/docker-{id}.scope"), Some(&id)),
            (format!("/docker/{id}"), Some(&id)),
            (
                format!("/system.slice/containerd.service/kubepods-pod9.slice:cri-containerd:{id}"),
                Some(&id),
            ),
            (format!("/docker/{id}/kubepods/pod9/{inner}"), Some(&inner)),
            (format!("/kubepods/pod9/{id}/init.scope"), Some(&id)),
            ("/system.slice/sshd.service".to_owned(), None),
            ("/".to_owned(), None),
            (String::new(), None),
            (format!("/kubepods/pod9/{}", &id[1..]), None),
            (format!("/kubepods/pod9/{}z", &id[1..]), None),
        ];
        for (path, expected) in cases {
            assert_eq!(
                container_id(&path),
                expected.and_then(|id| ContainerId::new(id)),
                "{path}"
            );
        }
    }
}
