use super::*;

const UID: &str = "9d7c5fbe-11a2-4c3b-8f0e-0123456789ab";
const UID_SLICE: &str = "9d7c5fbe_11a2_4c3b_8f0e_0123456789ab";
const INNER_UID: &str = "11111111-2222-3333-4444-555555555555";
const INNER_SLICE: &str = "11111111_2222_3333_4444_555555555555";
const STATIC_UID: &str = "0b6f14a38b14b6c0b0d7ef7a2a9c8d11";
const ID: &str = "3f9a0b1c3f9a0b1c3f9a0b1c3f9a0b1c3f9a0b1c3f9a0b1c3f9a0b1c3f9a0b1c";
const INNER_ID: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

/// Fills in the constants: `{uid}`, `{slice}` (its form in slices), `{static}`, `{id}`; `{UID}`, `{SLICE}`, `{ID}`
/// are those of an inner pod and container.
fn filled(template: &str) -> String {
    [
        ("{uid}", UID),
        ("{slice}", UID_SLICE),
        ("{UID}", INNER_UID),
        ("{SLICE}", INNER_SLICE),
        ("{static}", STATIC_UID),
        ("{id}", ID),
        ("{ID}", INNER_ID),
    ]
    .into_iter()
    .fold(template.to_owned(), |text, (name, value)| text.replace(name, value))
}

fn owner_text(owner: Option<CgroupOwner>) -> String {
    let Some(CgroupOwner { pod, container }) = owner else {
        return "none".to_owned();
    };
    let pod = pod.map(|pod| format!("{} {}", pod.root, pod.uid));
    let container = container.map(|id| id.to_string());
    pod.into_iter().chain(container).collect::<Vec<_>>().join(" ")
}

/// Paths, all of whose directories are root's, and the owner: the kubelet's root, the pod's UID, the container.
const PATHS: &str = "
# cgroupfs driver: best effort, burstable, guaranteed, static.
/kubepods/besteffort/pod{uid}/{id} => /kubepods {uid} {id}
/kubepods/burstable/pod{uid}/{id} => /kubepods {uid} {id}
/kubepods/pod{uid}/{id} => /kubepods {uid} {id}
/kubepods/pod{static}/{id} => /kubepods {static} {id}
/kubepods/burstable/pod{uid}/crio-{id} => /kubepods {uid} {id}
/kubepods/pod{uid} => /kubepods {uid}
/custom/kubepods/pod{uid}/{id} => /custom/kubepods {uid} {id}
# Cgroups within a container.
/kubepods/pod{uid}/{id}/init.scope => /kubepods {uid} {id}
/kubepods/pod{uid}/{id}/system.slice/sshd.service => /kubepods {uid} {id}
/kubepods/pod{uid}/{id}/docker/{ID} => /kubepods {uid} {id}
# systemd driver: containerd, CRI-O, cri-dockerd.
/kubepods.slice/kubepods-pod{slice}.slice/cri-containerd-{id}.scope => /kubepods.slice {uid} {id}
/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{slice}.slice/crio-{id}.scope \
    => /kubepods.slice {uid} {id}
/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{slice}.slice/crio-{id}.scope/container \
    => /kubepods.slice {uid} {id}
/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{slice}.slice/docker-{id}.scope \
    => /kubepods.slice {uid} {id}
/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{static}.slice/cri-containerd-{id}.scope \
    => /kubepods.slice {static} {id}
/custom.slice/custom-kubepods.slice/custom-kubepods-pod{slice}.slice/cri-containerd-{id}.scope \
    => /custom.slice/custom-kubepods.slice {uid} {id}
# The monitor beside a container is in the pod, but no container.
/kubepods.slice/kubepods-pod{slice}.slice/crio-conmon-{id}.scope => /kubepods.slice {uid}
/kubepods/pod{uid}/crio-conmon-{id} => /kubepods {uid}
# A runtime with the cgroupfs driver, a kubelet with the systemd driver.
/system.slice/containerd.service/kubepods-burstable-pod{slice}.slice:cri-containerd:{id} \
    => /kubepods.slice {uid} {id}
/kubepods-pod{slice}.slice:cri-containerd:{id} => /kubepods.slice {uid} {id}
/a/kubepods-besteffort-pod{slice}.slice:crio:{id}/x => /kubepods.slice {uid} {id}
/docker/{ID}/system.slice/containerd.service/kubelet-kubepods-pod{slice}.slice:cri-containerd:{id} \
    => /docker/{ID}/kubelet.slice/kubelet-kubepods.slice {uid} {id}
# A node in a container: kind, k3d, minikube.
/docker/{id}/kubelet/kubepods/besteffort/pod{uid}/{ID} => /docker/{id}/kubelet/kubepods {uid} {ID}
/docker/{id}/kubepods/pod{uid}/{ID} => /docker/{id}/kubepods {uid} {ID}
/system.slice/docker-{id}.scope/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/\
    kubelet-kubepods-burstable-pod{slice}.slice/cri-containerd-{ID}.scope \
    => /system.slice/docker-{id}.scope/kubelet.slice/kubelet-kubepods.slice {uid} {ID}
/machine.slice/libpod-{id}.scope/container/kubelet.slice/kubelet-kubepods.slice/\
    kubelet-kubepods-pod{slice}.slice/cri-containerd-{ID}.scope \
    => /machine.slice/libpod-{id}.scope/container/kubelet.slice/kubelet-kubepods.slice {uid} {ID}
# A node in a pod: the outer pod counts.
/kubepods/pod{uid}/{id}/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{SLICE}.slice/\
    cri-containerd-{ID}.scope => /kubepods {uid} {id}
/kubepods/pod{uid}/{id}/kubepods/pod{UID}/{ID} => /kubepods {uid} {id}
/kubepods/pod{uid}/x/kubepods/pod{UID}/{ID} => /kubepods {uid}
# Containers outside of pods: Docker, Podman, nerdctl; the outermost counts.
/system.slice/docker-{id}.scope => {id}
/docker/{id} => {id}
/docker/{id}/docker/{ID} => {id}
/machine.slice/libpod-{id}.scope/container => {id}
/libpod_parent/libpod-{id} => {id}
/system.slice/redis.service/libpod-payload-{id} => {id}
/system.slice/nerdctl-{id}.scope => {id}
/machine.slice/libpod-conmon-{id}.scope => none
/libpod_parent/conmon/libpod-conmon-{id} => none
# Neither.
/system.slice/sshd.service => none
/user.slice/user-0.slice/session-1.scope => none
/kubepods/besteffort => none
/kubepods.slice/kubepods-burstable.slice => none
/ => none
 => none
# Names that are nearly those of pods and containers.
/kubepods/pod{uid}/{id}z => /kubepods {uid}
/kubepods/pod{uid}/my-{id} => /kubepods {uid}
/kubepods/pod{uid}/{id} (deleted) => /kubepods {uid}
/kubepods/pod{uid}/docker-{id}.scope.scope => /kubepods {uid}
/kubepods/pod{uid}/x:y:{id} => /kubepods {uid}
/kubepods/pod{uid}/x/{id} => /kubepods {uid}
/kubepods/pod{uid}0/{id} => {id}
/kubepods/pod9D7C5FBE-11a2-4c3b-8f0e-0123456789ab/{id} => {id}
/kubepods/podium/{id} => {id}
/kubepods/podé7c5fbe-11a2-4c3b-8f0e-0123456789ab/{id} => {id}
/pod{uid}/{id} => {id}
/kubepods/guaranteed/pod{uid}/{id} => {id}
/kubepods/x/pod{uid}/{id} => {id}
/burstable/pod{uid}/{id} => {id}
/libpod_parent/pod{uid}/{id} => {id}
/my-kubepods/pod{uid}/{id} => {id}
/machine.slice/machine-pod{slice}.slice/{id} => {id}
/kubepods.slice/kubepods-burstable-pod{slice}.slice/{id} => {id}
/x.slice/kubepods-pod{slice}.slice/{id} => {id}
/kubepods-burstable.slice/kubepods-burstable-pod{slice}.slice/{id} => {id}
/notkubepods.slice/notkubepods-pod{slice}.slice/{id} => {id}
/machine-pod{slice}.slice:cri-containerd:{id} => {id}
/kubepods-pod{slice}.slice:x:{id} => none
/kubepods-pod{slice}.slice:cri-containerd:x => none
";

#[test]
fn path_has_pod_and_container() {
    let cases = PATHS.lines().filter(|line| !line.starts_with('#'));
    for (path, expected) in cases.filter_map(|line| line.split_once(" => ")) {
        let path = filled(path);
        let trusted = path.split('/').count() + 1;
        let owner = CgroupPath::parse(&path).owner(trusted);
        assert_eq!(owner_text(owner), filled(expected), "{path}");
    }
}

/// The number of trusted directories counts the hierarchy's root.
#[test]
fn everything_above_the_container_must_be_roots() {
    const BY_RUNTIME: &str = "/kubepods-pod{slice}.slice:cri-containerd:{id}";
    const IN_CONTAINER: &str = "/docker/{id}/kubepods/pod{uid}/{ID}";
    const ROOTLESS: &str =
        "/user.slice/user-1000.slice/user@1000.service/kubepods.slice/kubepods-pod{slice}.slice/crio-{id}.scope";
    const OF_USER: &str = "/user.slice/user-1000.slice/user@1000.service/docker-{id}.scope";
    let cases = [
        ("/kubepods/pod{uid}/{id}/x", 5, "/kubepods {uid} {id}"),
        ("/kubepods/pod{uid}/{id}/x", 4, "/kubepods {uid} {id}"),
        ("/kubepods/pod{uid}/{id}/x", 3, "/kubepods {uid} {id}"),
        ("/kubepods/pod{uid}/{id}/x", 2, "none"),
        ("/kubepods/pod{uid}/{id}/x", 0, "none"),
        ("/kubepods/pod{uid}", 3, "/kubepods {uid}"),
        ("/kubepods/pod{uid}", 2, "none"),
        ("/kubepods/pod{uid}/x/y", 3, "/kubepods {uid}"),
        ("/kubepods/pod{uid}/x/y", 2, "none"),
        (BY_RUNTIME, 1, "/kubepods.slice {uid} {id}"),
        (BY_RUNTIME, 0, "none"),
        // A node in a container that root does not own, or whose tree it does not own, has no pods.
        (IN_CONTAINER, 5, "/docker/{id}/kubepods {uid} {ID}"),
        (IN_CONTAINER, 4, "{id}"),
        (IN_CONTAINER, 2, "{id}"),
        (IN_CONTAINER, 1, "none"),
        // A rootless kubelet, and a container that a user makes up.
        (ROOTLESS, 3, "none"),
        (OF_USER, 3, "none"),
    ];
    for (path, trusted, expected) in cases {
        let path = filled(path);
        let owner = CgroupPath::parse(&path).owner(trusted);
        assert_eq!(owner_text(owner), filled(expected), "{path} with {trusted}");
    }
}

#[test]
fn path_has_a_kind() {
    let cases = [
        ("/", CgroupKind::Outside),
        ("/kubepods/burstable", CgroupKind::Outside),
        ("/docker/{id}", CgroupKind::Outside),
        ("/docker/{id}/x", CgroupKind::Outside),
        ("/kubepods/pod{uid}", CgroupKind::Pod),
        ("/kubepods/pod{uid}/{id}", CgroupKind::Container),
        ("/kubepods/pod{uid}/{id}/x", CgroupKind::Nested),
        ("/kubepods/pod{uid}/x", CgroupKind::Nested),
        ("/kubepods-pod{slice}.slice:cri-containerd:{id}", CgroupKind::Container),
    ];
    for (path, expected) in cases {
        assert_eq!(CgroupPath::parse(&filled(path)).kind(), expected, "{path}");
    }
}
