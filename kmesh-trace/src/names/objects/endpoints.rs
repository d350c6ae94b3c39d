//! EndpointSlices, and the Endpoints of older API servers.

use std::net::SocketAddr;

use serde::Deserialize;

use super::{Ip, Labels, List, Meta, ip, is_tcp, port};
use crate::names::update::{EndpointsObject, Object};

/// The most addresses of one object: an EndpointSlice has at most 1,000 endpoints, mostly with one port.
const MAX_ADDRESSES: usize = 10_000;
/// The most ports of one object.
const MAX_PORTS: usize = 100;
/// The label that says of which Service a slice is.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// `discovery.k8s.io/v1` `EndpointSlice`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct EndpointSlice {
    metadata: Option<Meta>,
    endpoints: List<Endpoint, 1_000>,
    ports: List<Port, MAX_PORTS>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Endpoint {
    addresses: List<String, 100>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Port {
    protocol: Option<String>,
    port: Option<i64>,
}

/// Joins each address with each TCP port. Endpoints that are not ready count: they may still have connections.
fn addresses<'a>(ips: impl Iterator<Item = &'a str> + Clone, ports: &[Port]) -> impl Iterator<Item = SocketAddr> {
    ports.iter().flat_map(move |one| {
        let number = one.port.filter(|_| is_tcp(one.protocol.as_deref())).and_then(port);
        let addresses = number.map(|number| {
            let ips = ips.clone().filter_map(ip);
            ips.map(move |ip| SocketAddr::new(ip, number))
        });
        addresses.into_iter().flatten()
    })
}

impl EndpointSlice {
    /// Returns the slice as the store takes it.
    pub fn object(self) -> Object {
        let meta = self.metadata.unwrap_or_default();
        let (namespace, name) = meta.namespaced_name();
        let labels = meta.labels.and_then(|Labels(labels)| labels).unwrap_or_default();
        let service = labels.into_iter().find(|(key, _)| key == SERVICE_NAME);
        let ips = self.endpoints.0.iter();
        let ips = ips.flat_map(|endpoint| endpoint.addresses.0.iter().map(String::as_str));
        Object::Endpoints(EndpointsObject {
            namespace,
            name,
            service: service.map(|(_, service)| service).unwrap_or_default(),
            addresses: addresses(ips, &self.ports.0).take(MAX_ADDRESSES).collect(),
        })
    }
}

/// `v1` `Endpoints`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Endpoints {
    metadata: Option<Meta>,
    subsets: List<Subset, 1_000>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Subset {
    addresses: List<Ip, MAX_ADDRESSES>,
    not_ready_addresses: List<Ip, MAX_ADDRESSES>,
    ports: List<Port, MAX_PORTS>,
}

impl Endpoints {
    /// Returns the Endpoints as the store takes them.
    pub fn object(self) -> Object {
        let (namespace, name) = self.metadata.unwrap_or_default().namespaced_name();
        let all = self.subsets.0.iter().flat_map(|subset| {
            let ips = [&subset.addresses, &subset.not_ready_addresses];
            let ips = ips.into_iter().flat_map(|ips| &ips.0);
            addresses(ips.filter_map(|one| one.ip.as_deref()), &subset.ports.0)
        });
        Object::Endpoints(EndpointsObject {
            service: name.clone(),
            namespace,
            name,
            addresses: all.take(MAX_ADDRESSES).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::objects::parsed;

    #[test]
    fn slices_and_endpoints_have_the_same_addresses() {
        let slice = parsed(
            "EndpointSlice",
            r#"{"metadata":{"namespace":"shop","name":"web-1","labels":{"kubernetes.io/service-name":"web"}},
              "addressType":"IPv4","ports":[{"name":"http","port":8080,"protocol":"TCP"},{"port":null},
                {"name":"dns","port":53,"protocol":"UDP"}],
              "endpoints":[{"addresses":["10.0.0.1"]},{"addresses":["10.0.0.2"],"conditions":{"ready":false}},
                {"addresses":null},{"addresses":["web.example"]}]}"#,
        );
        let endpoints = parsed(
            "Endpoints",
            r#"{"metadata":{"namespace":"shop","name":"web"},"subsets":[
              {"addresses":[{"ip":"10.0.0.1"}],"notReadyAddresses":[{"ip":"10.0.0.2"}],
               "ports":[{"name":"http","port":8080,"protocol":"TCP"},{"name":"dns","port":53,"protocol":"UDP"}]},
              {"addresses":null,"ports":null}]}"#,
        );
        let named = |name: &str| {
            Object::Endpoints(EndpointsObject {
                namespace: "shop".to_owned(),
                name: name.to_owned(),
                service: "web".to_owned(),
                addresses: ["10.0.0.1:8080", "10.0.0.2:8080"]
                    .map(|address| address.parse().unwrap())
                    .to_vec(),
            })
        };
        assert_eq!(slice, named("web-1"));
        assert_eq!(endpoints, named("web"));
    }

    #[test]
    fn endpoints_are_cut_at_their_limit() {
        let many = vec![r#""10.0.0.1""#; 1000].join(",");
        let ports: Vec<_> = (1..=1000).map(|port| format!(r#"{{"port":{port}}}"#)).collect();
        let json = format!(
            r#"{{"metadata":{{"namespace":"shop","name":"web-1"}},"ports":[{}],"endpoints":[{{"addresses":[{many}]}}]}}"#,
            ports.join(",")
        );
        match parsed("EndpointSlice", &json) {
            Object::Endpoints(endpoints) => assert_eq!(endpoints.addresses.len(), MAX_ADDRESSES),
            other => panic!("{other:?}"),
        }
    }
}
