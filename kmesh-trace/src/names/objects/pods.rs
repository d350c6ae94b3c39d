//! Pods.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Deserialize;

use super::{Ip, KubeObject, Meta, ip, is_tcp, or_default, pairs, port, text, time};
use crate::names::update::{ContainerObject, Key, Kind, Object, Owner, PodObject};
use crate::record::ContainerId;

/// `v1` `Pod`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Pod {
    #[serde(deserialize_with = "or_default")]
    metadata: Meta,
    spec: Option<PodSpec>,
    status: Option<PodStatus>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PodSpec {
    node_name: Option<String>,
    host_network: Option<bool>,
    service_account_name: Option<String>,
    init_containers: Option<Vec<Container>>,
    containers: Option<Vec<Container>>,
    ephemeral_containers: Option<Vec<Container>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Container {
    name: Option<String>,
    ports: Option<Vec<ContainerPort>>,
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
    pod_ips: Option<Vec<Ip>>,
    init_container_statuses: Option<Vec<ContainerStatus>>,
    container_statuses: Option<Vec<ContainerStatus>>,
    ephemeral_container_statuses: Option<Vec<ContainerStatus>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct ContainerStatus {
    name: Option<String>,
    #[serde(rename = "containerID")]
    container_id: Option<String>,
}

/// `containerd://3f9a…` without the scheme.
fn container_id(text: &str) -> Option<ContainerId> {
    ContainerId::new(text.rsplit_once("://").map_or(text, |(_, id)| id))
}

impl Container {
    fn fact(self, ids: &BTreeMap<&str, ContainerId>) -> ContainerObject {
        let name = self.name.unwrap_or_default();
        let named = |container_port: ContainerPort| {
            let is_tcp = is_tcp(container_port.protocol.as_deref());
            let name = container_port.name.filter(|name| is_tcp && !name.is_empty())?;
            Some((name, port(container_port.container_port?)?))
        };
        ContainerObject {
            id: ids.get(name.as_str()).copied(),
            ports: self.ports.into_iter().flatten().filter_map(named).collect(),
            name,
        }
    }
}

impl PodStatus {
    fn ips(&self) -> Vec<IpAddr> {
        let several = self.pod_ips.iter().flatten().filter_map(|one| one.ip.as_deref());
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
        .flat_map(|statuses| statuses.iter().flatten())
        .filter_map(|status| Some((status.name.as_deref()?, container_id(status.container_id.as_deref()?)?)))
        .collect()
    }
}

impl KubeObject for Pod {
    const KIND: &'static str = "Pod";
    const TELLS: Kind = Kind::Pods;

    fn meta(&self) -> &Meta {
        &self.metadata
    }

    fn key(&self) -> Key {
        Key::Pod(text(&self.metadata.uid))
    }

    fn fact(self) -> Object {
        let meta = self.metadata;
        let spec = self.spec.unwrap_or_default();
        let status = self.status.unwrap_or_default();
        let (namespace, name) = meta.names();
        let ids = status.container_ids();
        let containers = [spec.init_containers, spec.containers, spec.ephemeral_containers];
        let annotations = meta.annotations.clone().unwrap_or_default();
        Object::Pod(PodObject {
            uid: text(&meta.uid),
            static_uid: annotations.mirror.or(annotations.hash),
            namespace,
            name,
            owner: match meta.controller() {
                // The mirror of a static pod, which nobody controls: its own list says so.
                Some(owner) if owner.kind == "Node" => Owner::Nobody,
                Some(owner) => Owner::By(owner),
                None => Owner::Nobody,
            },
            labels: Some(pairs(meta.labels)),
            node: spec.node_name.filter(|name| !name.is_empty()),
            host_network: Some(spec.host_network.unwrap_or(false)),
            service_account: spec.service_account_name.filter(|name| !name.is_empty()),
            ips: status.ips(),
            started: status
                .start_time
                .as_deref()
                .and_then(time)
                .or_else(|| meta.creation_timestamp.as_deref().and_then(time)),
            terminal: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
            containers: containers
                .into_iter()
                .flatten()
                .flatten()
                .map(|container| container.fact(&ids))
                .collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::objects::told;
    use crate::names::update::ControllerRef;
    use crate::record::WallTime;

    fn pod(json: &str) -> PodObject {
        match told("Pod", json) {
            Object::Pod(pod) => pod,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_pod_tells_all_that_naming_needs() {
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
    fn a_pod_may_lack_anything() {
        let nothing = pod("{}");
        assert_eq!((nothing.owner, nothing.host_network), (Owner::Nobody, Some(false)));
        let nulls = [
            r#"{"metadata":null,"spec":null,"status":null}"#,
            r#"{"metadata":{"labels":null,"annotations":null,"ownerReferences":null,"creationTimestamp":null},
                "spec":{"containers":null,"initContainers":null,"nodeName":""},
                "status":{"podIPs":null,"podIP":"","containerStatuses":null}}"#,
            r#"{"spec":{"containers":[{"name":null,"ports":null}]},"status":{"podIPs":[{}]}}"#,
        ];
        for json in nulls {
            let pod = pod(json);
            assert_eq!((pod.node, pod.ips, pod.started), (None, vec![], None), "{json}");
        }
    }

    #[test]
    fn static_pods_are_tied_to_their_mirrors() {
        let own = r#"{"metadata":{"uid":"4d3","annotations":{"kubernetes.io/config.hash":"4d3"}}}"#;
        let mirror = r#"{"metadata":{"uid":"9-9","annotations":
            {"kubernetes.io/config.hash":"4d3","kubernetes.io/config.mirror":"4d3"},
            "ownerReferences":[{"kind":"Node","name":"n1","uid":"n","controller":true}]}}"#;
        for json in [own, mirror] {
            let pod = pod(json);
            assert_eq!((pod.static_uid.as_deref(), pod.owner), (Some("4d3"), Owner::Nobody));
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
            let ips: Vec<_> = pod(&format!(r#"{{"status":{status}}}"#))
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
            let json = format!(r#"{{"status":{{"phase":"{phase}"}}}}"#);
            assert_eq!(pod(&json).terminal, terminal, "{phase}");
        }
    }
}
