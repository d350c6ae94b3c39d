//! Pods.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Deserialize;

use super::{Annotations, Ip, Labels, List, Meta, Writer, ip, is_tcp, port, text, time};
use crate::names::update::{ContainerObject, Object, Owner, PodObject};
use crate::record::ContainerId;

/// The most containers of a pod, of each field. More containers have no name.
const MAX_CONTAINERS: usize = 128;
/// The most ports of a container.
const MAX_PORTS: usize = 64;
/// The most addresses of a pod.
const MAX_ADDRESSES: usize = 16;
/// The length of a static pod's UID: 32 hexadecimal digits without dashes, unlike every UID that an API server gives.
const STATIC_UID_LEN: usize = 32;

/// `v1` `Pod`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Pod {
    metadata: Option<Meta>,
    spec: Option<PodSpec>,
    status: Option<PodStatus>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PodSpec {
    node_name: Option<String>,
    host_network: Option<bool>,
    service_account_name: Option<String>,
    init_containers: List<Container, MAX_CONTAINERS>,
    containers: List<Container, MAX_CONTAINERS>,
    ephemeral_containers: List<Container, MAX_CONTAINERS>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Container {
    name: Option<String>,
    /// `Always` makes an init container a sidecar, which runs beside the pod's containers.
    restart_policy: Option<String>,
    ports: List<ContainerPort, MAX_PORTS>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ContainerPort {
    name: Option<String>,
    container_port: Option<i64>,
    protocol: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PodStatus {
    phase: Option<String>,
    start_time: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: List<Ip, MAX_ADDRESSES>,
    init_container_statuses: List<ContainerStatus, MAX_CONTAINERS>,
    container_statuses: List<ContainerStatus, MAX_CONTAINERS>,
    ephemeral_container_statuses: List<ContainerStatus, MAX_CONTAINERS>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct ContainerStatus {
    name: Option<String>,
    #[serde(rename = "containerID")]
    container_id: Option<String>,
}

/// Parses `containerd://3f9a…`, with or without the scheme.
fn container_id(text: &str) -> Option<ContainerId> {
    ContainerId::new(text.rsplit_once("://").map_or(text, |(_, id)| id))
}

impl Container {
    /// Returns the init container without the ports that it has only before the pod's containers start: no Service leads there.
    fn into_init_container(mut self) -> Self {
        if self.restart_policy.as_deref() != Some("Always") {
            self.ports.0.clear();
        }
        self
    }

    fn object(self, ids: &BTreeMap<&str, ContainerId>) -> ContainerObject {
        let name = self.name.unwrap_or_default();
        let named = |container_port: ContainerPort| {
            let is_tcp = is_tcp(container_port.protocol.as_deref());
            let name = container_port.name.filter(|name| is_tcp && !name.is_empty())?;
            Some((name, port(container_port.container_port?)?))
        };
        ContainerObject {
            id: ids.get(name.as_str()).copied(),
            ports: self.ports.0.into_iter().filter_map(named).collect(),
            name,
        }
    }
}

impl PodStatus {
    fn ips(&self) -> Vec<IpAddr> {
        let several = self.pod_ips.0.iter().filter_map(|one| one.ip.as_deref());
        let mut ips: Vec<_> = several.filter_map(ip).collect();
        if ips.is_empty() {
            ips.extend(self.pod_ip.as_deref().and_then(ip));
        }
        ips
    }

    fn container_ids(&self) -> BTreeMap<&str, ContainerId> {
        [
            &self.init_container_statuses,
            &self.container_statuses,
            &self.ephemeral_container_statuses,
        ]
        .into_iter()
        .flat_map(|statuses| &statuses.0)
        .filter_map(|status| Some((status.name.as_deref()?, container_id(status.container_id.as_deref()?)?)))
        .collect()
    }
}

/// Returns the second UID of a static pod, if the kubelet vouches for it: the kubelet overwrites these annotations.
pub fn static_uid_by_kubelet(config_source: Option<&str>, config_hash: Option<&str>) -> Option<String> {
    match config_source {
        None | Some("api") => None,
        Some(_) => config_hash.map(str::to_owned),
    }
}

/// Returns the second UID of a mirror pod. Users choose the annotations, but a static pod's UID is never that of a pod that an
/// API server made, and the mirror's owner is the pod's own node.
fn static_uid_by_api_server(annotations: &Annotations, owner: &Owner, node: Option<&str>) -> Option<String> {
    let uid = annotations.config_mirror.as_deref()?;
    let is_static = uid.len() == STATIC_UID_LEN && uid.bytes().all(|byte| byte.is_ascii_hexdigit());
    let is_of_node = matches!(owner, Owner::By(owner) if owner.kind == "Node" && Some(&*owner.name) == node);
    (is_static && is_of_node).then(|| uid.to_owned())
}

impl Pod {
    /// Returns the pod as the store takes it.
    pub fn object(self, writer: Writer) -> Object {
        let meta = self.metadata.unwrap_or_default();
        let spec = self.spec.unwrap_or_default();
        let status = self.status.unwrap_or_default();
        let (namespace, name) = meta.namespaced_name();
        let ids = status.container_ids();
        let containers = (spec.init_containers.0.into_iter().map(Container::into_init_container))
            .chain(spec.containers.0)
            .chain(spec.ephemeral_containers.0);
        let annotations = meta.annotations.as_ref().cloned().unwrap_or_default();
        let owner = meta.controller().map_or(Owner::Nobody, Owner::By);
        let node = spec.node_name.filter(|name| !name.is_empty());
        let static_uid = match writer {
            Writer::Kubelet => {
                static_uid_by_kubelet(annotations.config_source.as_deref(), annotations.config_hash.as_deref())
            }
            Writer::ApiServer => static_uid_by_api_server(&annotations, &owner, node.as_deref()),
        };
        Object::Pod(PodObject {
            uid: text(&meta.uid),
            static_uid,
            namespace,
            name,
            owner: match owner {
                // A static pod has no controller, as the kubelet's list says.
                Owner::By(owner) if owner.kind == "Node" => Owner::Nobody,
                owner => owner,
            },
            labels: match meta.labels {
                Some(Labels(labels)) => labels,
                None => Some(Vec::new()),
            },
            node,
            host_network: Some(spec.host_network.unwrap_or(false)),
            service_account: spec.service_account_name.filter(|name| !name.is_empty()),
            ips: status.ips(),
            started: status
                .start_time
                .as_deref()
                .and_then(time)
                .or_else(|| meta.creation_timestamp.as_deref().and_then(time)),
            terminal: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
            containers: containers.map(|container| container.object(&ids)).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::objects::{parse, parsed};
    use crate::names::update::ControllerRef;
    use crate::record::WallTime;

    fn pod(json: &str) -> PodObject {
        match parsed("Pod", json) {
            Object::Pod(pod) => pod,
            other => panic!("{other:?}"),
        }
    }

    /// A pod with this spec and this status.
    fn with(members: &str) -> PodObject {
        pod(&format!(r#"{{"metadata":{{"uid":"u","name":"web"}},{members}}}"#))
    }

    #[test]
    fn pod_has_all_that_naming_needs() {
        let id = "3f".repeat(32);
        let init = "aa".repeat(32);
        let json = format!(
            r#"{{"metadata":{{"name":"web-6d4b9-x2x","namespace":"shop","uid":"u1","creationTimestamp":null,
                "labels":{{"app":"web","empty":null}},
                "ownerReferences":[{{"kind":"Other","name":"o","uid":"o"}},
                    {{"kind":"ReplicaSet","name":"web-6d4b9","uid":"r1","controller":true}}]}},
              "spec":{{"nodeName":"n1","serviceAccountName":"default","containers":[
                {{"name":"main","ports":[{{"name":"http","containerPort":8080}},{{"containerPort":1}},
                    {{"name":"dns","containerPort":53,"protocol":"UDP"}},{{"name":"bad","containerPort":70000}}]}},
                {{"name":"waits"}}],"initContainers":[{{"name":"first"}}]}},
              "status":{{"phase":"Running","startTime":"2024-09-14T08:19:26Z","podIP":"10.0.0.1",
                "podIPs":[{{"ip":"10.0.0.1"}},{{"ip":"fd00::1"}}],
                "initContainerStatuses":[{{"name":"first","containerID":"containerd://{init}"}}],
                "containerStatuses":[{{"name":"main","containerID":"containerd://{id}"}},
                    {{"name":"waits","containerID":""}}]}}}}"#
        );
        let container = |name: &str, id: &str, ports: &[(&str, u16)]| ContainerObject {
            name: name.to_owned(),
            id: ContainerId::new(id),
            ports: ports.iter().map(|&(name, port)| (name.to_owned(), port)).collect(),
        };
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let expected = PodObject {
            uid: "u1".to_owned(),
            static_uid: None,
            namespace: "shop".to_owned(),
            name: "web-6d4b9-x2x".to_owned(),
            labels: Some(vec![pair("app", "web"), pair("empty", "")]),
            node: Some("n1".to_owned()),
            host_network: Some(false),
            service_account: Some("default".to_owned()),
            owner: Owner::By(ControllerRef {
                kind: "ReplicaSet".to_owned(),
                name: "web-6d4b9".to_owned(),
                uid: "r1".to_owned(),
            }),
            ips: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            started: Some(WallTime(1_726_301_966_000_000_000)),
            terminal: false,
            containers: vec![
                container("first", &init, &[]),
                container("main", &id, &[("http", 8080)]),
                container("waits", "", &[]),
            ],
        };
        assert_eq!(pod(&json), expected);
    }

    #[test]
    fn ports_of_init_containers_count_only_for_sidecars() {
        let port = r#""ports":[{"name":"http","containerPort":8080}]"#;
        let found = with(&format!(
            r#""spec":{{"initContainers":[{{"name":"first",{port}}},{{"name":"sidecar","restartPolicy":"Always",{port}}}],
              "containers":[{{"name":"main",{port}}}]}}"#
        ));
        let counts: Vec<_> = found
            .containers
            .iter()
            .map(|one| (&*one.name, one.ports.len()))
            .collect();
        assert_eq!(counts, [("first", 0), ("sidecar", 1), ("main", 1)]);
    }

    #[test]
    fn pod_may_lack_anything_but_its_identity() {
        let nothing = pod(r#"{"metadata":{"uid":"u"}}"#);
        assert_eq!((nothing.owner, nothing.host_network), (Owner::Nobody, Some(false)));
        let nulls = [
            r#"{"metadata":{"uid":"u"},"spec":null,"status":null}"#,
            r#"{"metadata":{"uid":"u","labels":null,"annotations":null,"ownerReferences":null,"creationTimestamp":null},
                "spec":{"containers":null,"initContainers":null,"nodeName":""},
                "status":{"podIPs":null,"podIP":"","containerStatuses":null}}"#,
            r#"{"metadata":{"uid":"u"},"spec":{"containers":[{"name":null,"ports":null}]},"status":{"podIPs":[{}]}}"#,
        ];
        for json in nulls {
            let pod = pod(json);
            assert_eq!((pod.node, pod.ips, pod.started), (None, vec![], None), "{json}");
        }
    }

    const STATIC: &str = "e10f27833d6898de61d846374e3c0d0a";
    const VICTIM: &str = "616228b6-685c-4ea6-98c2-0e14f12a777f";

    /// The second UID of a pod on node `n1`, by what it says of itself.
    fn static_uid(writer: Writer, annotations: &[(&str, &str)], owner: &str) -> Option<String> {
        let annotations: Vec<_> = annotations
            .iter()
            .map(|(key, value)| format!(r#""kubernetes.io/config.{key}":"{value}""#))
            .collect();
        let json = format!(
            r#"{{"metadata":{{"uid":"u","name":"a","annotations":{{{}}},"ownerReferences":[{owner}]}},"spec":{{"nodeName":"n1"}}}}"#,
            annotations.join(",")
        );
        match parse("Pod", json.as_bytes(), writer) {
            Ok(Some(Object::Pod(pod))) => pod.static_uid,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn static_pod_is_the_pod_that_the_kubelet_read_from_elsewhere() {
        let by_kubelet = |annotations: &[_]| static_uid(Writer::Kubelet, annotations, "");
        let file = [("source", "file"), ("hash", STATIC)];
        assert_eq!(by_kubelet(&file).as_deref(), Some(STATIC));
        assert_eq!(
            by_kubelet(&[("source", "http"), ("hash", STATIC)]).as_deref(),
            Some(STATIC)
        );
        // What a user can write into an ordinary pod: the kubelet says that it came from the API server.
        for annotations in [
            &[("source", "api"), ("hash", VICTIM), ("mirror", VICTIM)][..],
            &[("source", "api"), ("hash", STATIC)],
            &[("hash", VICTIM)],
            &[("mirror", VICTIM)],
        ] {
            assert_eq!(by_kubelet(annotations), None, "{annotations:?}");
        }
    }

    #[test]
    fn mirror_pod_is_owned_by_its_own_node() {
        let node = r#"{"kind":"Node","name":"n1","uid":"n","controller":true}"#;
        let mirror = [("source", "file"), ("hash", STATIC), ("mirror", STATIC)];
        assert_eq!(static_uid(Writer::ApiServer, &mirror, node).as_deref(), Some(STATIC));
        let other_node = r#"{"kind":"Node","name":"n2","uid":"n","controller":true}"#;
        let set = r#"{"kind":"ReplicaSet","name":"n1","uid":"r","controller":true}"#;
        let forged = [("source", "file"), ("hash", VICTIM), ("mirror", VICTIM)];
        for (annotations, owner) in [
            (&mirror[..], ""),
            (&mirror, set),
            (&mirror, other_node),
            (&mirror[..2], node),
            (&forged, ""),
            // A user may name a node as the owner, too. The UID of a pod that an API server made has dashes.
            (&forged, node),
        ] {
            assert_eq!(
                static_uid(Writer::ApiServer, annotations, owner),
                None,
                "{annotations:?} {owner}"
            );
        }
    }

    #[test]
    fn addresses_are_those_that_are_addresses() {
        let cases: [(&str, &[&str]); 5] = [
            (r#"{"podIP":"10.0.0.1"}"#, &["10.0.0.1"]),
            (r#"{"podIP":"10.0.0.1","podIPs":[]}"#, &["10.0.0.1"]),
            (r#"{"podIPs":[{"ip":"::ffff:10.0.0.1"}]}"#, &["10.0.0.1"]),
            (r#"{"podIP":"nonsense"}"#, &[]),
            (
                r#"{"podIP":"10.0.0.1","podIPs":[{"ip":"10.0.0.1"},{"ip":"::1"}]}"#,
                &["10.0.0.1", "::1"],
            ),
        ];
        for (status, expected) in cases {
            let ips: Vec<_> = with(&format!(r#""status":{status}"#))
                .ips
                .iter()
                .map(IpAddr::to_string)
                .collect();
            assert_eq!(ips, expected, "{status}");
        }
    }

    #[test]
    fn finished_pods_are_terminal() {
        for (phase, terminal) in [
            ("Succeeded", true),
            ("Failed", true),
            ("Running", false),
            ("Pending", false),
            ("Unknown", false),
        ] {
            let pod = with(&format!(r#""status":{{"phase":"{phase}"}}"#));
            assert_eq!(pod.terminal, terminal, "{phase}");
        }
    }
}
