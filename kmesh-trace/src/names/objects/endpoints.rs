//! Parses EndpointSlices, and the Endpoints of older API servers.

use std::net::SocketAddr;

use serde::Deserialize;

use super::{Bounded, Ip, Meta, Text, ip, is_tcp, port};
use crate::names::update::EndpointsObject;

/// The largest number of addresses of one object: an EndpointSlice has at most 1,000 endpoints, mostly with one port.
const MAX_ADDRESSES: usize = 10_000;
const MAX_PORTS: usize = 100;
/// The label with the name of a slice's Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

#[derive(Default, Deserialize)]
#[serde(default)]
pub struct EndpointSlice {
    metadata: Option<Meta>,
    endpoints: Bounded<Endpoint, 1_000>,
    ports: Bounded<EndpointPort, MAX_PORTS>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Endpoint {
    addresses: Bounded<Text, 100>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct EndpointPort {
    protocol: Text,
    port: Option<i64>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub struct Endpoints {
    metadata: Option<Meta>,
    subsets: Bounded<Subset, 1_000>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Subset {
    addresses: Bounded<Ip, MAX_ADDRESSES>,
    not_ready_addresses: Bounded<Ip, MAX_ADDRESSES>,
    ports: Bounded<EndpointPort, MAX_PORTS>,
}

/// Joins each address with each TCP port, or with port 0 if there are no ports, as of a headless Service without ports.
/// Endpoints that are not ready count: they may still have connections.
fn addresses<'a>(
    ips: impl Iterator<Item = &'a Text> + Clone,
    ports: &[EndpointPort],
) -> impl Iterator<Item = SocketAddr> {
    let none = ports.is_empty().then_some(0);
    let ports = ports.iter().filter(|one| is_tcp(&one.protocol));
    let ports = ports.filter_map(|one| port(one.port?));
    ports.chain(none).flat_map(move |port| {
        let ips = ips.clone().filter_map(|text| ip(&text.0));
        ips.map(move |ip| SocketAddr::new(ip, port))
    })
}

impl EndpointSlice {
    pub fn object(self) -> EndpointsObject {
        let meta = self.metadata.unwrap_or_default();
        let mut labels = meta.labels.0.into_iter().flatten();
        let service = labels.find(|(key, _)| key == SERVICE_NAME);
        let ips = self.endpoints.0.iter().flat_map(|endpoint| &endpoint.addresses.0);
        EndpointsObject {
            namespace: meta.namespace.0,
            name: meta.name.0,
            service: service.map(|(_, service)| service).unwrap_or_default(),
            addresses: addresses(ips, &self.ports.0).take(MAX_ADDRESSES).collect(),
        }
    }
}

impl Endpoints {
    pub fn object(self) -> EndpointsObject {
        let meta = self.metadata.unwrap_or_default();
        let all = self.subsets.0.iter().flat_map(|subset| {
            let ips = subset.addresses.0.iter().chain(&subset.not_ready_addresses.0);
            addresses(ips.map(|one| &one.ip), &subset.ports.0)
        });
        EndpointsObject {
            namespace: meta.namespace.0,
            service: meta.name.0.clone(),
            name: meta.name.0,
            addresses: all.take(MAX_ADDRESSES).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::objects::parsed;
    use crate::names::update::Object;

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
    fn endpoints_without_ports_have_port_zero() {
        for ports in ["null", "[]"] {
            let slice = format!(
                r#"{{"metadata":{{"name":"a-1","labels":{{"kubernetes.io/service-name":"a"}}}},"ports":{ports},
                  "endpoints":[{{"addresses":["10.0.0.1"]}}]}}"#
            );
            let endpoints = format!(
                r#"{{"metadata":{{"name":"a"}},"subsets":[{{"addresses":[{{"ip":"10.0.0.1"}}],"ports":{ports}}}]}}"#
            );
            for (kind, json) in [("EndpointSlice", slice), ("Endpoints", endpoints)] {
                match parsed(kind, &json) {
                    Object::Endpoints(found) => assert_eq!(found.addresses, ["10.0.0.1:0".parse().unwrap()], "{json}"),
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    #[test]
    fn endpoints_are_cut_at_their_limit() {
        let many = vec![r#""10.0.0.1""#; 1000].join(",");
        let ports: Vec<_> = (1..=1000).map(|port| format!(r#"{{"port":{port}}}"#)).collect();
        let ports = ports.join(",");
        let json =
            format!(r#"{{"metadata":{{"name":"web-1"}},"ports":[{ports}],"endpoints":[{{"addresses":[{many}]}}]}}"#);
        match parsed("EndpointSlice", &json) {
            Object::Endpoints(endpoints) => assert_eq!(endpoints.addresses.len(), MAX_ADDRESSES),
            other => panic!("{other:?}"),
        }
    }
}
