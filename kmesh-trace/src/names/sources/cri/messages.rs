//! The messages of CRI, as far as naming needs them.

use std::net::IpAddr;

use super::super::protobuf::{Fields, Value};
use crate::names::objects::BoundedLabels;
use crate::names::update::ContainerObject;
use crate::record::ContainerId;

/// The prefix of the labels by which the kubelet finds its pods. No pod has them itself.
const KUBELET_LABELS: &str = "io.kubernetes.pod.";
/// The value `NODE` of `NamespaceMode`.
const NODE_NETWORK: i64 = 2;
const MAX_ADDRESSES: usize = 16;

/// Returns the value at this path of fields, the last one if there are several.
fn at<'a>(message: &'a [u8], path: &[u64]) -> Option<Value<'a>> {
    let (first, rest) = path.split_first()?;
    let (_, value) = Fields(message).filter(|(field, _)| field == first).last()?;
    match rest.is_empty() {
        true => Some(value),
        false => at(value.bytes(), rest),
    }
}

fn text_at(message: &[u8], path: &[u64]) -> String {
    at(message, path).map(Value::text).unwrap_or_default()
}

fn number_at(message: &[u8], path: &[u64]) -> i64 {
    at(message, path).map_or(0, Value::number)
}

/// What naming needs of a `PodSandbox`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sandbox {
    pub id: String,
    /// The name, the UID and the namespace of the pod.
    pub name: String,
    pub uid: String,
    pub namespace: String,
    /// `READY`, or another state.
    pub state: i64,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    /// The labels of the pod.
    pub labels: Option<Vec<(String, String)>>,
    /// The value of the annotation `kubernetes.io/config.source`.
    pub config_source: Option<String>,
    /// The value of the annotation `kubernetes.io/config.hash`.
    pub config_hash: Option<String>,
}

impl Sandbox {
    pub fn parse(message: &[u8]) -> Self {
        let entries = |number| {
            let fields = Fields(message).filter(move |(field, _)| *field == number);
            fields.map(|(_, entry)| (text_at(entry.bytes(), &[1]), text_at(entry.bytes(), &[2])))
        };
        let mut labels = BoundedLabels::default();
        for (key, value) in entries(5).filter(|(key, _)| !key.starts_with(KUBELET_LABELS)) {
            labels.push(key, value);
        }
        let annotation = |name: &str| entries(6).find(|(key, _)| key == name).map(|(_, value)| value);
        Self {
            id: text_at(message, &[1]),
            name: text_at(message, &[2, 1]),
            uid: text_at(message, &[2, 2]),
            namespace: text_at(message, &[2, 3]),
            state: number_at(message, &[3]),
            created_at: number_at(message, &[4]),
            labels: labels.finish(),
            config_source: annotation("kubernetes.io/config.source"),
            config_hash: annotation("kubernetes.io/config.hash"),
        }
    }
}

/// `Container`: the id of its sandbox, and the container.
pub fn container(message: &[u8]) -> (String, ContainerObject) {
    let object = ContainerObject {
        name: text_at(message, &[3, 1]),
        id: ContainerId::new(&text_at(message, &[1])),
        ports: Vec::new(),
    };
    (text_at(message, &[2]), object)
}

/// What a sandbox has for as long as it exists.
#[derive(Clone, Debug, Default)]
pub struct Addresses {
    pub ips: Vec<IpAddr>,
    /// Whether the pod is in the node's network.
    pub host_network: bool,
}

impl Addresses {
    /// Parses the message `PodSandboxStatus`.
    pub fn parse(status: &[u8]) -> Self {
        let host_network = number_at(status, &[6, 1, 2, 1]) == NODE_NETWORK;
        let network = at(status, &[5]).map_or(&[][..], Value::bytes);
        let texts = Fields(network).filter_map(|(field, value)| match field {
            1 => Some(value.text()),
            2 => Some(text_at(value.bytes(), &[1])),
            _ => None,
        });
        // In the node's network, the address is the node's.
        let ips = texts
            .filter(|_| !host_network)
            .filter_map(|ip| ip.parse::<IpAddr>().ok());
        Self {
            ips: ips.map(|ip| ip.to_canonical()).take(MAX_ADDRESSES).collect(),
            host_network,
        }
    }
}
