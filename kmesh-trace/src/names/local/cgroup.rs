//! Reads the pod and the container out of a cgroup's path. Pure.
//!
//! A path is only a claim: a user who may create a directory may give it any name. [`CgroupPath::owner`] accepts a
//! claim only as far as the directories around it are root's.

#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::record::ContainerId;

/// The pod and container that own a cgroup, as far as root vouches for it. At least one of the two is present.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupOwner {
    /// The outermost pod around the cgroup.
    pub pod: Option<PodCgroup>,
    /// The outermost container within that pod; without a pod, the outermost container.
    pub container: Option<ContainerId>,
}

/// A pod as a kubelet's cgroups name it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PodCgroup {
    /// The path of the kubelet's cgroup root, such as `/kubepods.slice` or `/docker/<id>/kubelet/kubepods`. It
    /// distinguishes the kubelets of one machine.
    pub root: Arc<str>,
    /// The pod's UID. A static pod's is 32 digits without dashes.
    pub uid: Arc<str>,
}

/// What the names in a cgroup's path claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupPath {
    depth: usize,
    /// The outermost container that is not in a pod.
    outer: Option<Claim<ContainerId>>,
    pod: Option<Claim<PodCgroup>>,
    /// The container of that pod.
    container: Option<Claim<ContainerId>>,
}

/// A value, and the number of the component that claims it. The first component has number 1; the hierarchy's root is
/// 0.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Claim<T> {
    value: T,
    depth: usize,
}

/// The kind of a path's last component.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CgroupKind {
    /// A directory outside of pods: there may be pods or containers below it.
    Outside,
    /// A pod's own directory: its children are containers.
    Pod,
    Container,
    /// A directory below a pod that is not a container, or that is below a container.
    Nested,
}

impl CgroupPath {
    /// Reads a path from the hierarchy's root, such as `/kubepods/burstable/pod<uid>/<id>`.
    pub fn parse(path: &str) -> Self {
        let components: Vec<&str> = path.split('/').filter(|component| !component.is_empty()).collect();
        let mut parsed = Self {
            depth: components.len(),
            outer: None,
            pod: None,
            container: None,
        };
        for (index, component) in components.iter().enumerate() {
            let (above, depth) = (&components[..index], index + 1);
            if let Some(pod) = pod_of_directory(component, above) {
                parsed.pod = Some(Claim { value: pod, depth });
                let child = components.get(depth).and_then(|child| container_id(child));
                parsed.container = child.map(|value| Claim {
                    value,
                    depth: depth + 1,
                });
                return parsed;
            }
            let outer_depth = parsed.outer.as_ref().map_or(0, |outer| outer.depth);
            if let Some((pod, container)) = pod_and_container(component, &components[..outer_depth]) {
                parsed.pod = Some(Claim { value: pod, depth });
                parsed.container = Some(Claim {
                    value: container,
                    depth,
                });
                return parsed;
            }
            if parsed.outer.is_none() {
                parsed.outer = container_id(component).map(|value| Claim { value, depth });
            }
        }
        parsed
    }

    /// Returns the owner of the cgroup. `trusted` is the number of directories, from the hierarchy's root downwards and
    /// the root included, that are owned by root and that only root can write to.
    ///
    /// Everything above a container must be trusted. The container's own directory need not be: it may be delegated.
    pub fn owner(&self, trusted: usize) -> Option<CgroupOwner> {
        if let Some(pod) = &self.pod {
            let container = self.container.as_ref();
            // The pod's own directory must be trusted too, unless it is the container's as well.
            let needed = container.map_or(pod.depth + 1, |container| container.depth);
            if trusted >= needed {
                return Some(CgroupOwner {
                    pod: Some(pod.value.clone()),
                    container: container.map(|container| container.value),
                });
            }
        }
        let outer = self.outer.as_ref().filter(|outer| trusted >= outer.depth)?;
        Some(CgroupOwner {
            pod: None,
            container: Some(outer.value),
        })
    }

    pub fn kind(&self) -> CgroupKind {
        let ends_at = |depth: usize| depth == self.depth;
        match (&self.pod, &self.container) {
            (_, Some(container)) if ends_at(container.depth) => CgroupKind::Container,
            (Some(pod), None) if ends_at(pod.depth) => CgroupKind::Pod,
            (Some(_), _) => CgroupKind::Nested,
            (None, _) => CgroupKind::Outside,
        }
    }

    pub fn depth(&self) -> usize {
        self.depth
    }

    /// Returns the pod that the path claims.
    pub fn pod(&self) -> Option<&PodCgroup> {
        self.pod.as_ref().map(|pod| &pod.value)
    }

    /// Returns the container that the path claims, and the number of components up to it, where no pod is around it.
    pub fn outer_container(&self) -> Option<(ContainerId, usize)> {
        self.outer.as_ref().map(|outer| (outer.value, outer.depth))
    }
}

/// Reads a pod's own directory: `pod<uid>` below `kubepods` (cgroupfs driver), or `kubepods-burstable-pod<uid>.slice`
/// below `kubepods.slice/kubepods-burstable.slice` (systemd driver, which writes `_` for each `-` of the UID). The
/// parent directories must be the kubelet's too.
fn pod_of_directory(component: &str, above: &[&str]) -> Option<PodCgroup> {
    let (parent, grandparent) = (above.last()?, above.len().checked_sub(2).map(|index| above[index]));
    if let Some(uid) = component.strip_prefix("pod") {
        let levels = match (*parent, grandparent) {
            ("kubepods", _) => 0,
            ("burstable" | "besteffort", Some("kubepods")) => 1,
            _ => return None,
        };
        return Some(PodCgroup {
            root: joined(&above[..above.len() - levels]),
            uid: uid_from(uid)?.into(),
        });
    }
    let slice = PodSlice::parse(component.strip_suffix(".slice")?)?;
    let is_child_of = |name: &str| parent.strip_suffix(".slice") == Some(name);
    let levels = match slice.class {
        None if is_child_of(slice.root) => 0,
        Some(class)
            if is_child_of(&format!("{}-{class}", slice.root))
                && grandparent?.strip_suffix(".slice") == Some(slice.root) =>
        {
            1
        }
        _ => return None,
    };
    Some(PodCgroup {
        root: joined(&above[..above.len() - levels]),
        uid: slice.uid.into(),
    })
}

/// Reads `<pod's slice>:<runtime>:<id>`, which a runtime with the cgroupfs driver makes for a kubelet with the
/// systemd driver. The kubelet's root is not in such a path; it is where that kubelet puts its other pods, below
/// `machine`.
fn pod_and_container(component: &str, machine: &[&str]) -> Option<(PodCgroup, ContainerId)> {
    let (slice, _) = component.split_once(':')?;
    let container = container_id(component)?;
    let slice = PodSlice::parse(slice.strip_suffix(".slice")?)?;
    let dashes = slice.root.match_indices('-').map(|(index, _)| index);
    let parents = dashes.chain([slice.root.len()]);
    let slices = parents.map(|end| format!("/{}.slice", &slice.root[..end]));
    let machine = machine.iter().map(|component| format!("/{component}"));
    let root: String = machine.chain(slices).collect();
    let pod = PodCgroup {
        root: root.into(),
        uid: slice.uid.into(),
    };
    Some((pod, container))
}

/// The parts of a pod's slice, without `.slice`.
struct PodSlice<'a> {
    /// `kubepods`, after what `--cgroup-root` adds: `kubelet-kubepods`.
    root: &'a str,
    /// The QoS class `burstable` or `besteffort`; `None` is guaranteed.
    class: Option<&'a str>,
    uid: String,
}

impl<'a> PodSlice<'a> {
    fn parse(name: &'a str) -> Option<Self> {
        let (parent, uid) = name.rsplit_once("-pod")?;
        let uid = uid_from(&uid.replace('_', "-"))?;
        let (root, class) = match parent.rsplit_once('-') {
            Some((root, class @ ("burstable" | "besteffort"))) => (root, Some(class)),
            _ => (parent, None),
        };
        let is_kubelets = root == "kubepods" || root.ends_with("-kubepods");
        is_kubelets.then_some(Self { root, class, uid })
    }
}

/// Returns the id of the container that a directory is, if it is one. Runtimes name it `<id>` or `crio-<id>`
/// (cgroupfs driver), `cri-containerd-<id>.scope`, `crio-<id>.scope`, `docker-<id>.scope`, `libpod-<id>.scope`
/// (systemd driver), or `<slice>:cri-containerd:<id>`. The monitors beside containers, such as
/// `crio-conmon-<id>.scope`, are none.
fn container_id(component: &str) -> Option<ContainerId> {
    let (prefix, id) = match component.rsplit_once(':') {
        Some((before, id)) => (before.rsplit(':').next()?, id),
        None => {
            let name = component.strip_suffix(".scope").unwrap_or(component);
            name.rsplit_once('-').unwrap_or(("", name))
        }
    };
    let is_runtimes = matches!(
        prefix,
        "" | "cri-containerd" | "crio" | "docker" | "libpod" | "libpod-payload" | "nerdctl"
    );
    is_runtimes.then(|| ContainerId::new(id)).flatten()
}

/// Returns `text` if it is a UUID, or the 32 digits of one.
fn uid_from(text: &str) -> Option<String> {
    let is_hex = |part: &str| part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let lengths = text.split('-').map(str::len);
    let is_uid = is_hex(&text.replace('-', "")) && (lengths.clone().eq([32]) || lengths.eq([8, 4, 4, 4, 12]));
    is_uid.then(|| text.to_owned())
}

fn joined(components: &[&str]) -> Arc<str> {
    format!("/{}", components.join("/")).into()
}
