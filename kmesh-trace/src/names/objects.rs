//! Objects of Kubernetes as JSON, of which nothing is read but what naming needs, and the facts that they are.
//!
//! Any field may be absent or null: versions differ, and so do a kubelet, an API server and a file.

mod controllers;
mod endpoints;
pub mod file;
pub mod list;
mod nodes;
mod pods;
mod services;

use std::collections::BTreeMap;
use std::net::IpAddr;

use chrono::DateTime;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};

use crate::names::update::{ControllerRef, Key, Kind, Object};
use crate::record::WallTime;

pub use controllers::{Job, ReplicaSet};
pub use endpoints::{EndpointSlice, Endpoints};
pub use nodes::Node;
pub use pods::Pod;
pub use services::Service;

/// An object of one kind.
pub trait KubeObject: DeserializeOwned {
    /// `kind`.
    const KIND: &'static str;
    /// What it tells of.
    const TELLS: Kind;

    /// Its metadata.
    fn meta(&self) -> &Meta;
    /// What is named after it has gone.
    fn key(&self) -> Key;
    /// What it tells.
    fn fact(self) -> Object;
}

/// `metadata`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Meta {
    /// `namespace`.
    pub namespace: Option<String>,
    /// `name`.
    pub name: Option<String>,
    uid: Option<String>,
    /// `resourceVersion`.
    pub resource_version: Option<String>,
    creation_timestamp: Option<String>,
    labels: Option<BTreeMap<String, Option<String>>>,
    annotations: Option<Annotations>,
    owner_references: Option<Vec<OwnerReference>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Annotations {
    #[serde(rename = "kubernetes.io/config.hash")]
    hash: Option<String>,
    #[serde(rename = "kubernetes.io/config.mirror")]
    mirror: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct OwnerReference {
    kind: Option<String>,
    name: Option<String>,
    uid: Option<String>,
    controller: Option<bool>,
}

impl Meta {
    fn names(&self) -> (String, String) {
        (text(&self.namespace), text(&self.name))
    }

    fn label(&self, key: &str) -> Option<String> {
        self.labels.as_ref()?.get(key)?.clone()
    }

    fn controller(&self) -> Option<ControllerRef> {
        let owners = self.owner_references.iter().flatten();
        let owner = owners.into_iter().find(|owner| owner.controller == Some(true))?;
        Some(ControllerRef {
            kind: text(&owner.kind),
            name: text(&owner.name),
            uid: text(&owner.uid),
        })
    }
}

/// Null is as good as absent.
fn or_default<'de, T: Deserialize<'de> + Default, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

fn text(text: &Option<String>) -> String {
    text.clone().unwrap_or_default()
}

fn pairs(map: Option<BTreeMap<String, Option<String>>>) -> Vec<(String, String)> {
    map.into_iter()
        .flatten()
        .map(|(key, value)| (key, value.unwrap_or_default()))
        .collect()
}

/// IPv4-mapped IPv6 is IPv4. What is no address is none: `None`, an empty string, a host's name.
fn ip(text: &str) -> Option<IpAddr> {
    text.parse::<IpAddr>().ok().map(|ip| ip.to_canonical())
}

fn time(text: &str) -> Option<WallTime> {
    DateTime::parse_from_rfc3339(text)
        .ok()?
        .timestamp_nanos_opt()
        .map(WallTime)
}

fn port(number: i64) -> Option<u16> {
    u16::try_from(number).ok().filter(|&port| port != 0)
}

fn is_tcp(protocol: Option<&str>) -> bool {
    protocol.is_none_or(|protocol| protocol.is_empty() || protocol == "TCP")
}

/// An address, as pods, load balancers and Endpoints have them.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Ip {
    ip: Option<String>,
}

/// The fact that an object of this kind is; none of a kind that naming has no use for.
pub fn fact(kind: &str, json: &str) -> serde_json::Result<Option<Object>> {
    fn as_fact<T: KubeObject>(json: &str) -> serde_json::Result<Option<Object>> {
        serde_json::from_str::<T>(json).map(|object| Some(object.fact()))
    }
    match kind {
        Pod::KIND => as_fact::<Pod>(json),
        Service::KIND => as_fact::<Service>(json),
        EndpointSlice::KIND => as_fact::<EndpointSlice>(json),
        Endpoints::KIND => as_fact::<Endpoints>(json),
        ReplicaSet::KIND => as_fact::<ReplicaSet>(json),
        Job::KIND => as_fact::<Job>(json),
        Node::KIND => as_fact::<Node>(json),
        _ => Ok(None),
    }
}

/// What a fact tells of.
pub fn kind_of(fact: &Object) -> Kind {
    match fact {
        Object::Pod(_) => Kind::Pods,
        Object::Service(_) => Kind::Services,
        Object::Endpoints(_) => Kind::Endpoints,
        Object::Controller(controller) => controller.kind,
        Object::Node(_) => Kind::Nodes,
    }
}

#[cfg(test)]
fn told(kind: &str, json: &str) -> Object {
    fact(kind, json).unwrap().unwrap()
}
