//! Nodes.

use serde::Deserialize;

use super::{KubeObject, Meta, ip, or_default, text};
use crate::names::update::{Key, Kind, NodeObject, Object};

/// `v1` `Node`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Node {
    #[serde(deserialize_with = "or_default")]
    metadata: Meta,
    status: Option<NodeStatus>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct NodeStatus {
    addresses: Option<Vec<NodeAddress>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct NodeAddress {
    address: Option<String>,
}

impl KubeObject for Node {
    const KIND: &'static str = "Node";
    const TELLS: Kind = Kind::Nodes;

    fn meta(&self) -> &Meta {
        &self.metadata
    }

    fn key(&self) -> Key {
        Key::Node(text(&self.metadata.name))
    }

    fn fact(self) -> Object {
        let name = text(&self.metadata.name);
        let addresses = self.status.and_then(|status| status.addresses);
        Object::Node(NodeObject {
            name,
            ips: addresses
                .iter()
                .flatten()
                .filter_map(|one| ip(one.address.as_deref()?))
                .collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::objects::told;

    #[test]
    fn names_are_no_addresses() {
        let node = r#"{"metadata":{"name":"n1"},"status":{"addresses":[{"type":"InternalIP","address":"192.0.2.2"},
            {"type":"Hostname","address":"n1"},{"address":null}]}}"#;
        let expected = Object::Node(NodeObject {
            name: "n1".to_owned(),
            ips: vec!["192.0.2.2".parse().unwrap()],
        });
        assert_eq!(told("Node", node), expected);
    }
}
