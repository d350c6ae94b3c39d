//! Nodes.

use serde::Deserialize;

use super::{List, Meta, ip, text};
use crate::names::update::{NodeObject, Object};

/// The most addresses of a node.
const MAX_ADDRESSES: usize = 64;

/// `v1` `Node`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Node {
    metadata: Option<Meta>,
    status: Option<NodeStatus>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct NodeStatus {
    addresses: List<NodeAddress, MAX_ADDRESSES>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct NodeAddress {
    address: Option<String>,
}

impl Node {
    /// Returns the node as the store takes it.
    pub fn object(self) -> Object {
        let addresses = self.status.unwrap_or_default().addresses.0;
        Object::Node(NodeObject {
            name: text(&self.metadata.unwrap_or_default().name),
            ips: addresses.iter().filter_map(|one| ip(one.address.as_deref()?)).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::objects::parsed;

    #[test]
    fn host_names_are_no_addresses() {
        let node = r#"{"metadata":{"name":"n1"},"status":{"addresses":[{"type":"InternalIP","address":"192.0.2.2"},
            {"type":"Hostname","address":"n1"},{"address":null}]}}"#;
        let expected = Object::Node(NodeObject {
            name: "n1".to_owned(),
            ips: vec!["192.0.2.2".parse().unwrap()],
        });
        assert_eq!(parsed("Node", node), expected);
    }
}
