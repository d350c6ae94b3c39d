//! From a cgroup's path to the container and the pod it belongs to. Pure.

use std::sync::Arc;

use crate::record::ContainerId;

/// The pod and container that a cgroup belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CgroupOwner {
    /// x
    pub pod: Option<PodCgroup>,
    /// x
    pub container: Option<ContainerId>,
}

/// A pod's cgroup.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodCgroup {
    /// x
    pub root: Arc<str>,
    /// x
    pub uid: Arc<str>,
}

/// Whose a cgroup is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// UIDs of the pods around it, the innermost first; none outside of pods.
    pub pods: Box<[Arc<str>]>,
    /// The container around it.
    /// x
    pub container: Option<ContainerId>,
}

impl Place {
    /// What a cgroup's path tells, if it is anything.
    pub fn of(path: &str) -> Option<Self> {
        let place = Self {
            pods: pod_uids(path).map(Arc::from).collect(),
            container: container_id(path),
        };
        (place != Self::default()).then_some(place)
    }
}

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

/// The UIDs of the pods within whose cgroups this path is, the innermost first: of nested ones (a node that is itself a
/// container in a pod), sources may know either.
///
/// The kubelet names a pod's cgroup `pod<uid>` below a `kubepods` (cgroupfs driver), or `kubepods-burstable-pod<uid>.slice`,
/// with `_` for each `-` of the UID (systemd driver); what stands before `kubepods` is `--cgroup-root`'s. A static pod's
/// UID has no dashes.
pub fn pod_uids(path: &str) -> impl Iterator<Item = String> {
    let mut above = path;
    std::iter::from_fn(move || {
        while let Some((rest, component)) = above.rsplit_once('/') {
            above = rest;
            if let Some(uid) = uid_of(component, rest) {
                return Some(uid);
            }
        }
        None
    })
}

fn uid_of(component: &str, above: &str) -> Option<String> {
    if let Some(uid) = component.strip_prefix("pod") {
        let is_kubelets = above.split('/').any(|one| one.ends_with("kubepods"));
        return is_kubelets.then(|| uid_from(uid)).flatten();
    }
    // `<slice>:cri-containerd:<id>`, where the runtime's driver is not the kubelet's.
    let slice = component.split(':').next()?.strip_suffix(".slice")?;
    let (before, uid) = slice.rsplit_once("-pod")?;
    let is_kubelets = before.split('-').any(|one| one == "kubepods");
    is_kubelets.then(|| uid_from(&uid.replace('_', "-"))).flatten()
}

/// A UUID, or its 32 digits alone.
fn uid_from(text: &str) -> Option<String> {
    let is_hex = |part: &str| part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let lengths = text.split('-').map(str::len);
    let is_uid = is_hex(&text.replace('-', "")) && (lengths.clone().eq([32]) || lengths.eq([8, 4, 4, 4, 12]));
    is_uid.then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "9d7c5fbe-11a2-4c3b-8f0e-0123456789ab";
    const ESCAPED: &str = "9d7c5fbe_11a2_4c3b_8f0e_0123456789ab";
    const STATIC: &str = "0b6f14a38b14b6c0b0d7ef7a2a9c8d11";

    /// A path, the pods of it, and whether the container of it is `id`, `inner` or none.
    #[test]
    fn every_shape_of_path() {
        let id = "3f9a0b1c".repeat(8);
        let inner = "aa".repeat(32);
        let other = "11111111-2222-3333-4444-555555555555";
        let other_escaped = other.replace('-', "_");
        let nested = [other, UID];
        let cases: Vec<(String, &[&str], Option<&String>)> = vec![
            // cgroupfs driver: best effort, burstable, guaranteed.
            (format!("/kubepods/besteffort/pod{UID}/{id}"), &[UID], Some(&id)),
            (format!("/kubepods/burstable/pod{UID}/{id}"), &[UID], Some(&id)),
            (format!("/kubepods/pod{UID}/{id}"), &[UID], Some(&id)),
            (format!("/kubepods/pod{UID}/crio-{id}"), &[UID], Some(&id)),
            (format!("/kubepods/pod{STATIC}/{id}"), &[STATIC], Some(&id)),
            (format!("/kubepods/pod{UID}"), &[UID], None),
            // Of a container in which systemd or a runtime makes cgroups of its own.
            (format!("/kubepods/pod{UID}/{id}/init.scope"), &[UID], Some(&id)),
            (
                format!("/kubepods/pod{UID}/{id}/system.slice/sshd.service"),
                &[UID],
                Some(&id),
            ),
            // systemd driver: containerd, CRI-O, cri-dockerd.
            (
                format!("/kubepods.slice/kubepods-pod{ESCAPED}.slice/cri-containerd-{id}.scope"),
                &[UID],
                Some(&id),
            ),
            (
                format!(
                    "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{ESCAPED}.slice/crio-{id}.scope"
                ),
                &[UID],
                Some(&id),
            ),
            (
                format!(
                    "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{ESCAPED}.slice/crio-{id}.scope/container"
                ),
                &[UID],
                Some(&id),
            ),
            (
                format!(
                    "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{ESCAPED}.slice/docker-{id}.scope"
                ),
                &[UID],
                Some(&id),
            ),
            (
                format!(
                    "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{STATIC}.slice/cri-containerd-{id}.scope"
                ),
                &[STATIC],
                Some(&id),
            ),
            // containerd without SystemdCgroup under a kubelet with it.
            (
                format!("/system.slice/containerd.service/kubepods-burstable-pod{ESCAPED}.slice:cri-containerd:{id}"),
                &[UID],
                Some(&id),
            ),
            // --cgroup-root; kind; k3d; a kubelet in a container.
            (format!("/custom/kubepods/pod{UID}/{id}"), &[UID], Some(&id)),
            (
                format!(
                    "/custom.slice/custom-kubepods.slice/custom-kubepods-pod{ESCAPED}.slice/cri-containerd-{id}.scope"
                ),
                &[UID],
                Some(&id),
            ),
            (
                format!("/docker/{id}/kubelet/kubepods/besteffort/pod{UID}/{inner}"),
                &[UID],
                Some(&inner),
            ),
            (
                format!(
                    "/system.slice/docker-{id}.scope/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod{ESCAPED}.slice/cri-containerd-{inner}.scope"
                ),
                &[UID],
                Some(&inner),
            ),
            (format!("/docker/{id}/kubepods/pod{UID}/{inner}"), &[UID], Some(&inner)),
            // A node in a pod.
            (
                format!(
                    "/kubepods/pod{UID}/{id}/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{other_escaped}.slice/cri-containerd-{inner}.scope"
                ),
                &nested,
                Some(&inner),
            ),
            // No pods.
            (format!("/system.slice/docker-{id}.scope"), &[], Some(&id)),
            (format!("/docker/{id}"), &[], Some(&id)),
            (format!("/machine.slice/libpod-{id}.scope/container"), &[], Some(&id)),
            ("/system.slice/sshd.service".to_owned(), &[], None),
            ("/user.slice/user-0.slice/session-1.scope".to_owned(), &[], None),
            ("/kubepods/besteffort".to_owned(), &[], None),
            ("/kubepods.slice/kubepods-burstable.slice".to_owned(), &[], None),
            ("/".to_owned(), &[], None),
            (String::new(), &[], None),
            // Nearly.
            (format!("/kubepods/pod{UID}/{}", &id[1..]), &[UID], None),
            (format!("/kubepods/pod{UID}/{}z", &id[1..]), &[UID], None),
            (format!("/kubepods/pod{}/{id}", &UID[1..]), &[], Some(&id)),
            (format!("/kubepods/pod{}/{id}", UID.to_uppercase()), &[], Some(&id)),
            (format!("/kubepods/podium/{id}"), &[], Some(&id)),
            (format!("/libpod_parent/pod{UID}/{id}"), &[], Some(&id)),
            (
                format!("/machine.slice/machine-pod{ESCAPED}.slice/{id}"),
                &[],
                Some(&id),
            ),
            (format!("/kubepods/podé{}/{id}", &UID[2..]), &[], Some(&id)),
        ];
        for (path, pods, container) in cases {
            assert_eq!(pod_uids(&path).collect::<Vec<_>>(), pods, "{path}");
            assert_eq!(
                container_id(&path),
                container.and_then(|id| ContainerId::new(id)),
                "{path}"
            );
        }
    }
}
