//! Messages of a container runtime, and the pods that they mean.

use std::net::IpAddr;

use super::messages;
use super::*;
use crate::names::update::Owner;
use crate::record::ContainerId;

fn sandbox(id: &str, uid: &str, created_at: i64) -> Sandbox {
    Sandbox {
        id: id.to_owned(),
        name: "web-1".to_owned(),
        uid: uid.to_owned(),
        namespace: "shop".to_owned(),
        state: READY,
        created_at,
        labels: Some(vec![("app".to_owned(), "web".to_owned())]),
        config_source: None,
        config_hash: None,
    }
}

fn container(id: &str, sandbox: &str, name: &str) -> (String, ContainerObject) {
    let object = ContainerObject {
        name: name.to_owned(),
        id: ContainerId::new(id),
        ports: Vec::new(),
    };
    (sandbox.to_owned(), object)
}

/// A message with these fields, each a text or a message.
fn message(fields: &[(u8, &[u8])]) -> Vec<u8> {
    let mut message = Vec::new();
    for (field, bytes) in fields {
        protobuf::push_text(&mut message, *field, &"x".repeat(bytes.len()));
        let start = message.len() - bytes.len();
        message[start..].copy_from_slice(bytes);
    }
    message
}

fn status(ip: &str, more: &[&str], network: u8) -> Vec<u8> {
    let more: Vec<_> = more.iter().map(|ip| message(&[(1, ip.as_bytes())])).collect();
    let ips = std::iter::once((1, ip.as_bytes())).chain(more.iter().map(|ip| (2, ip.as_slice())));
    let options = message(&[(2, &[1 << 3, network])]);
    let linux = message(&[(1, &options)]);
    message(&[(5, &message(&ips.collect::<Vec<_>>())), (6, &linux)])
}

#[test]
fn sandbox_is_read_from_its_message() {
    let entry = |key: &str, value: &str| message(&[(1, key.as_bytes()), (2, value.as_bytes())]);
    let metadata = message(&[(1, b"web-1"), (2, b"u1"), (3, b"shop")]);
    let mut sent = message(&[
        (1, b"id"),
        (2, &metadata),
        (5, &entry("app", "web")),
        (5, &entry("io.kubernetes.pod.uid", "u1")),
        (6, &entry("kubernetes.io/config.source", "file")),
        (6, &entry("kubernetes.io/config.hash", "4d3")),
        (7, b"runtime handler"),
    ]);
    sent.extend([3 << 3, 0, 4 << 3, 9]);
    let expected = Sandbox {
        config_source: Some("file".to_owned()),
        config_hash: Some("4d3".to_owned()),
        ..sandbox("id", "u1", 9)
    };
    assert_eq!(Sandbox::parse(&sent), expected);
    let container = messages::container(&message(&[
        (1, "ab".repeat(32).as_bytes()),
        (2, b"id"),
        (3, &message(&[(1, b"main")])),
    ]));
    assert_eq!(container, self::container(&"ab".repeat(32), "id", "main"));
}

#[test]
fn sandbox_with_too_many_labels_keeps_its_name() {
    let metadata = message(&[(1, b"web-1"), (2, b"u1")]);
    let mut sent = message(&[(2, &metadata)]);
    for number in 0..130_000 {
        sent.extend(message(&[(5, &message(&[(1, format!("k{number}").as_bytes())]))]));
    }
    let sandbox = Sandbox::parse(&sent);
    assert_eq!((&*sandbox.name, sandbox.labels), ("web-1", None));
}

#[test]
fn pod_has_its_latest_sandbox_and_the_containers_of_all() {
    let ids = ["aa".repeat(32), "bb".repeat(32)];
    let sandboxes = vec![
        sandbox("old", "u1", 5),
        sandbox("new", "u1", 9),
        sandbox("older", "u1", 1),
    ];
    let containers = vec![
        container(&ids[0], "old", "main"),
        container(&ids[1], "new", "main"),
        container("odd", "new", "odd"),
        container(&ids[0], "nowhere", "lost"),
    ];
    let addresses = [("new".to_owned(), Addresses::parse(&status("10.0.0.1", &["fd00::1"], 0)))].into();
    let found = pods(sandboxes, containers, &addresses);
    let [pod] = &found[..] else { panic!("{found:?}") };
    let mut containers: Vec<_> = pod.containers.iter().map(|one| (one.name.as_str(), one.id)).collect();
    containers.sort_by_key(|(name, id)| (*name, id.map(|id| id.to_string())));
    let expected = [
        ("main", ContainerId::new(&ids[0])),
        ("main", ContainerId::new(&ids[1])),
        ("odd", None),
    ];
    assert_eq!(containers, expected);
    assert_eq!((&*pod.uid, &*pod.namespace, &*pod.name), ("u1", "shop", "web-1"));
    assert_eq!(pod.labels, Some(vec![("app".to_owned(), "web".to_owned())]));
    assert_eq!(
        pod.ips.iter().map(IpAddr::to_string).collect::<Vec<_>>(),
        ["10.0.0.1", "fd00::1"]
    );
    assert_eq!((pod.started, pod.host_network), (Some(WallTime(9)), Some(false)));
    assert_eq!(pod.owner, Owner::Unknown);
}

#[test]
fn pod_in_the_nodes_network_has_no_address() {
    let addresses = Addresses::parse(&status("192.0.2.2", &[], 2));
    assert_eq!((addresses.ips, addresses.host_network), (vec![], true));
    let addresses = Addresses::parse(&status("", &["nonsense"], 0));
    assert_eq!((addresses.ips, addresses.host_network), (vec![], false));
    assert!(Addresses::parse(&[]).ips.is_empty());
}

#[test]
fn static_pod_has_its_hash() {
    let with = |source: &str| {
        let sandbox = Sandbox {
            config_source: Some(source.to_owned()),
            config_hash: Some("4d3".to_owned()),
            ..sandbox("s", "4d3", 1)
        };
        pods(vec![sandbox], vec![], &HashMap::new()).remove(0).static_uid
    };
    assert_eq!(with("file").as_deref(), Some("4d3"));
    assert_eq!(with("api"), None);
}

#[test]
fn sandbox_without_a_uid_is_left_out() {
    assert_eq!(pods(vec![sandbox("s", "", 1)], vec![], &HashMap::new()), []);
}
