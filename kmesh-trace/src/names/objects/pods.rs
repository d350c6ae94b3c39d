//! Parses objects of kind Pod.

use std::collections::HashMap;
use std::net::IpAddr;

use serde::Deserialize;

use super::{Annotations, Bounded, Ip, Meta, Text, Writer, ip, is_tcp, time};
use crate::names::update::{ContainerObject, Owner, PodObject};
use crate::record::ContainerId;

/// The largest number of containers of a pod, of each field. More containers have no name.
const MAX_CONTAINERS: usize = 128;
const MAX_PORTS: usize = 64;
const MAX_ADDRESSES: usize = 16;
/// The length of a static pod's UID: 32 hexadecimal digits without dashes, unlike every UID that an API server gives.
const STATIC_UID_LEN: usize = 32;

#[derive(Default, Deserialize)]
#[serde(default)]
pub struct RawPod {
    metadata: Option<Meta>,
    spec: Option<PodSpec>,
    status: Option<PodStatus>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PodSpec {
    node_name: Text,
    host_network: Option<bool>,
    service_account_name: Text,
    init_containers: Bounded<Container, MAX_CONTAINERS>,
    containers: Bounded<Container, MAX_CONTAINERS>,
    ephemeral_containers: Bounded<Container, MAX_CONTAINERS>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Container {
    name: Text,
    /// `Always` makes an init container a sidecar, which runs beside the pod's containers.
    restart_policy: Text,
    ports: Bounded<ContainerPort, MAX_PORTS>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ContainerPort {
    name: Text,
    container_port: Option<i64>,
    protocol: Text,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PodStatus {
    phase: Text,
    start_time: Text,
    #[serde(rename = "podIP")]
    pod_ip: Text,
    #[serde(rename = "podIPs")]
    pod_ips: Bounded<Ip, MAX_ADDRESSES>,
    init_container_statuses: Bounded<ContainerStatus, MAX_CONTAINERS>,
    container_statuses: Bounded<ContainerStatus, MAX_CONTAINERS>,
    ephemeral_container_statuses: Bounded<ContainerStatus, MAX_CONTAINERS>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ContainerStatus {
    name: Text,
    #[serde(rename = "containerID")]
    container_id: Text,
}

/// Parses `containerd://3f9a…`, with or without the scheme.
fn container_id(text: &str) -> Option<ContainerId> {
    ContainerId::new(text.rsplit_once("://").map_or(text, |(_, id)| id))
}

impl Container {
    /// Returns the init container without the ports that it has only before the pod's containers start: no Service
    /// leads there.
    fn into_init_container(mut self) -> Self {
        if self.restart_policy.0 != "Always" {
            self.ports.0.clear();
        }
        self
    }

    fn object(self, ids: &HashMap<String, ContainerId>) -> ContainerObject {
        let named = |port: ContainerPort| {
            let name = port.name.non_empty().filter(|_| is_tcp(&port.protocol))?;
            Some((name, super::port(port.container_port?)?))
        };
        ContainerObject {
            id: ids.get(&self.name.0).copied(),
            ports: self.ports.0.into_iter().filter_map(named).collect(),
            name: self.name.0,
        }
    }
}

impl PodStatus {
    fn ips(&self) -> Vec<IpAddr> {
        let mut ips: Vec<_> = self.pod_ips.0.iter().filter_map(|one| ip(&one.ip.0)).collect();
        if ips.is_empty() {
            ips.extend(ip(&self.pod_ip.0));
        }
        ips
    }

    fn container_ids(self) -> HashMap<String, ContainerId> {
        let statuses = [
            self.init_container_statuses,
            self.container_statuses,
            self.ephemeral_container_statuses,
        ];
        let statuses = statuses.into_iter().flat_map(|statuses| statuses.0);
        let ids = statuses.filter_map(|status| Some((status.name.0, container_id(&status.container_id.0)?)));
        ids.collect()
    }
}

/// Returns the second UID of a static pod, if the kubelet vouches for it: the kubelet overwrites these annotations.
pub fn static_uid_by_kubelet(config_source: Option<String>, config_hash: Option<String>) -> Option<String> {
    config_hash.filter(|_| config_source.is_some_and(|source| source != "api"))
}

/// Returns the second UID of a mirror pod. Users choose the annotations, but a static pod's UID is never that of a
/// pod that an API server made, and the mirror's owner is the pod's own node.
fn static_uid_by_api_server(annotations: Annotations, owner: &Owner, node: Option<&str>) -> Option<String> {
    let uid = annotations.config_mirror.0;
    let is_static = uid.len() == STATIC_UID_LEN && uid.bytes().all(|byte| byte.is_ascii_hexdigit());
    let is_of_node = matches!(owner, Owner::By(owner) if owner.kind == "Node" && Some(&*owner.name) == node);
    (is_static && is_of_node).then_some(uid)
}

impl RawPod {
    pub fn object(self, writer: Writer) -> PodObject {
        let mut meta = self.metadata.unwrap_or_default();
        let spec = self.spec.unwrap_or_default();
        let status = self.status.unwrap_or_default();
        let owner = meta.controller().map_or(Owner::Nobody, Owner::By);
        let annotations = meta.annotations.unwrap_or_default();
        let node = spec.node_name.non_empty();
        let static_uid = match writer {
            Writer::Kubelet => static_uid_by_kubelet(
                annotations.config_source.non_empty(),
                annotations.config_hash.non_empty(),
            ),
            Writer::ApiServer => static_uid_by_api_server(annotations, &owner, node.as_deref()),
        };
        let containers = (spec.init_containers.0.into_iter().map(Container::into_init_container))
            .chain(spec.containers.0)
            .chain(spec.ephemeral_containers.0);
        PodObject {
            uid: meta.uid.0,
            static_uid,
            namespace: meta.namespace.0,
            name: meta.name.0,
            owner: match owner {
                // A static pod has no controller, as the kubelet's list says.
                Owner::By(owner) if owner.kind == "Node" => Owner::Nobody,
                owner => owner,
            },
            labels: meta.labels.0,
            node,
            host_network: Some(spec.host_network.unwrap_or(false)),
            service_account: spec.service_account_name.non_empty(),
            ips: status.ips(),
            started: time(&status.start_time.0).or_else(|| time(&meta.creation_timestamp.0)),
            terminal: matches!(&*status.phase.0, "Succeeded" | "Failed"),
            containers: {
                let ids = status.container_ids();
                containers.map(|container| container.object(&ids)).collect()
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::objects::{parse, parsed};
    use crate::names::update::{ControllerRef, Object};
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
            r#""spec":{{"initContainers":[{{"name":"first",{port}}},
                {{"name":"sidecar","restartPolicy":"Always",{port}}}],"containers":[{{"name":"main",{port}}}]}}"#
        ));
        let counts = found.containers.iter().map(|one| (&*one.name, one.ports.len()));
        let counts: Vec<_> = counts.collect();
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

    /// Returns the second UID of a pod on node `n1` with these annotations and this owner.
    fn static_uid(writer: Writer, annotations: &[(&str, &str)], owner: &str) -> Option<String> {
        let annotations = annotations.iter();
        let annotations = annotations.map(|(key, value)| format!(r#""kubernetes.io/config.{key}":"{value}""#));
        let annotations = annotations.collect::<Vec<_>>().join(",");
        let json = format!(
            r#"{{"metadata":{{"uid":"u","name":"a","annotations":{{{annotations}}},"ownerReferences":[{owner}]}},
              "spec":{{"nodeName":"n1"}}}}"#
        );
        match parse("Pod", json.as_bytes(), writer) {
            Ok(Some(Object::Pod(pod))) => pod.static_uid,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn static_pod_comes_from_another_source_than_the_api() {
        let by_kubelet = |annotations: &[_]| static_uid(Writer::Kubelet, annotations, "");
        let file = [("source", "file"), ("hash", STATIC)];
        assert_eq!(by_kubelet(&file).as_deref(), Some(STATIC));
        assert_eq!(
            by_kubelet(&[("source", "http"), ("hash", STATIC)]).as_deref(),
            Some(STATIC)
        );
        // A user can write these into an ordinary pod, but the kubelet sets the source to `api`.
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
    fn invalid_addresses_are_left_out() {
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
