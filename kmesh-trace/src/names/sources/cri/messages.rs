//! The messages of CRI, as far as naming needs them.

use std::net::IpAddr;

use super::super::protobuf::{Fields, Value};
use crate::names::objects::BoundedLabels;
use crate::names::update::ContainerObject;
use crate::record::ContainerId;

/// The prefix of the labels by which the kubelet finds its pods. No pod has them itself.
const KUBELET_LABELS: &str = "io.kubernetes.pod.";
/// `NamespaceMode` `NODE`.
const NODE_NETWORK: i64 = 2;

/// `PodSandbox`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sandbox {
    /// The id of the sandbox.
    pub id: String,
    /// The name of the pod.
    pub name: String,
    /// The UID of the pod.
    pub uid: String,
    /// The namespace of the pod.
    pub namespace: String,
    /// `READY`, or another state.
    pub state: i64,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    /// The labels of the pod.
    pub labels: Option<Vec<(String, String)>>,
    /// The annotation `kubernetes.io/config.source`.
    pub config_source: Option<String>,
    /// The annotation `kubernetes.io/config.hash`.
    pub config_hash: Option<String>,
}

impl Sandbox {
    /// Parses the message.
    pub fn parse(message: &[u8]) -> Self {
        let mut sandbox = Self::default();
        let mut labels = BoundedLabels::default();
        for (field, value) in Fields(message) {
            match field {
                1 => sandbox.id = value.text(),
                2 => {
                    for (field, value) in Fields(value.bytes()) {
                        match field {
                            1 => sandbox.name = value.text(),
                            2 => sandbox.uid = value.text(),
                            3 => sandbox.namespace = value.text(),
                            _ => {}
                        }
                    }
                }
                3 => sandbox.state = value.number(),
                4 => sandbox.created_at = value.number(),
                5 => {
                    let (key, value) = map_entry(value);
                    if !key.starts_with(KUBELET_LABELS) {
                        labels.push(key, value);
                    }
                }
                6 => match map_entry(value) {
                    (key, source) if key == "kubernetes.io/config.source" => sandbox.config_source = Some(source),
                    (key, hash) if key == "kubernetes.io/config.hash" => sandbox.config_hash = Some(hash),
                    _ => {}
                },
                _ => {}
            }
        }
        sandbox.labels = labels.finish();
        sandbox
    }
}

fn map_entry(value: Value<'_>) -> (String, String) {
    let mut entry = (String::new(), String::new());
    for (field, value) in Fields(value.bytes()) {
        match field {
            1 => entry.0 = value.text(),
            2 => entry.1 = value.text(),
            _ => {}
        }
    }
    entry
}

/// Returns the value at this path of fields, the last one if there are several.
fn at<'a>(message: &'a [u8], path: &[u64]) -> Option<Value<'a>> {
    let (first, rest) = path.split_first()?;
    let (_, value) = Fields(message).filter(|(field, _)| field == first).last()?;
    match rest.is_empty() {
        true => Some(value),
        false => at(value.bytes(), rest),
    }
}

/// `Container`: the id of its sandbox, and the container.
pub fn container(message: &[u8]) -> (String, ContainerObject) {
    let text = |path: &[u64]| at(message, path).map(Value::text).unwrap_or_default();
    let object = ContainerObject {
        name: text(&[3, 1]),
        id: ContainerId::new(&text(&[1])),
        ports: Vec::new(),
    };
    (text(&[2]), object)
}

/// What a sandbox has for as long as it is there.
#[derive(Clone, Debug, Default)]
pub struct Addresses {
    /// The addresses.
    pub ips: Vec<IpAddr>,
    /// Whether the pod is in the node's network.
    pub host_network: bool,
}

impl Addresses {
    /// Parses a `PodSandboxStatus`.
    pub fn parse(status: &[u8]) -> Self {
        let mode = at(status, &[6, 1, 2, 1]).map_or(0, Value::number);
        let host_network = mode == NODE_NETWORK;
        let network = at(status, &[5]).map_or(&[][..], Value::bytes);
        let texts = Fields(network).filter_map(|(field, value)| match field {
            1 => Some(value.text()),
            2 => at(value.bytes(), &[1]).map(Value::text),
            _ => None,
        });
        Self {
            // In the node's network, the address is the node's.
            ips: texts
                .filter(|_| !host_network)
                .filter_map(|ip| ip.parse::<IpAddr>().ok())
                .map(|ip| ip.to_canonical())
                .take(16)
                .collect(),
            host_network,
        }
    }
}
