//! Where the pods of Services are: slices, and what older API servers have in their place.

use std::net::SocketAddr;

use serde::Deserialize;

use super::{Ip, KubeObject, Meta, ip, is_tcp, or_default, port};
use crate::names::update::{EndpointsObject, Key, Kind, Object};

/// Addresses of one Endpoints object or slice that are taken. Kubernetes allows a thousand endpoints and a hundred ports.
const MOST_ADDRESSES: usize = 100_000;

/// `discovery.k8s.io/v1` `EndpointSlice`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct EndpointSlice {
    #[serde(deserialize_with = "or_default")]
    metadata: Meta,
    endpoints: Option<Vec<Endpoint>>,
    ports: Option<Vec<Port>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Endpoint {
    addresses: Option<Vec<String>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Port {
    name: Option<String>,
    protocol: Option<String>,
    port: Option<i64>,
}

/// Each address with each TCP port. Ready or not: what is not may still be talking.
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

impl KubeObject for EndpointSlice {
    const KIND: &'static str = "EndpointSlice";
    const TELLS: Kind = Kind::Endpoints;

    fn meta(&self) -> &Meta {
        &self.metadata
    }

    fn key(&self) -> Key {
        let (namespace, name) = self.metadata.names();
        Key::Endpoints(namespace, name)
    }

    fn fact(self) -> Object {
        let (namespace, name) = self.metadata.names();
        let ips = self.endpoints.iter().flatten();
        let ips = ips.flat_map(|endpoint| endpoint.addresses.iter().flatten().map(String::as_str));
        Object::Endpoints(EndpointsObject {
            namespace,
            name,
            service: self.metadata.label("kubernetes.io/service-name").unwrap_or_default(),
            addresses: addresses(ips, self.ports.as_deref().unwrap_or_default())
                .take(MOST_ADDRESSES)
                .collect(),
        })
    }
}

/// `v1` `Endpoints`: what older API servers have in place of slices of version 1.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Endpoints {
    #[serde(deserialize_with = "or_default")]
    metadata: Meta,
    subsets: Option<Vec<Subset>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Subset {
    addresses: Option<Vec<Ip>>,
    not_ready_addresses: Option<Vec<Ip>>,
    ports: Option<Vec<Port>>,
}

impl KubeObject for Endpoints {
    const KIND: &'static str = "Endpoints";
    const TELLS: Kind = Kind::Endpoints;

    fn meta(&self) -> &Meta {
        &self.metadata
    }

    fn key(&self) -> Key {
        let (namespace, name) = self.metadata.names();
        Key::Endpoints(namespace, name)
    }

    fn fact(self) -> Object {
        let (namespace, name) = self.metadata.names();
        let subsets = self.subsets.unwrap_or_default();
        let all = subsets.iter().flat_map(|subset| {
            let ips = [&subset.addresses, &subset.not_ready_addresses];
            let ips = ips.into_iter().flat_map(|ips| ips.iter().flatten());
            let ips = ips.filter_map(|one| one.ip.as_deref());
            addresses(ips, subset.ports.as_deref().unwrap_or_default())
        });
        Object::Endpoints(EndpointsObject {
            service: name.clone(),
            namespace,
            name,
            addresses: all.take(MOST_ADDRESSES).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::objects::told;

    #[test]
    fn slices_and_endpoints_tell_the_same() {
        let slice = told(
            "EndpointSlice",
            r#"{"metadata":{"namespace":"shop","name":"web-1","labels":{"kubernetes.io/service-name":"web"}},
              "addressType":"IPv4","ports":[{"name":"http","port":8080,"protocol":"TCP"},{"port":null},
                {"name":"dns","port":53,"protocol":"UDP"}],
              "endpoints":[{"addresses":["10.0.0.1"]},{"addresses":["10.0.0.2"],"conditions":{"ready":false}},
                {"addresses":null},{"addresses":["web.example"]}]}"#,
        );
        let endpoints = told(
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
    fn endpoints_without_end_are_cut() {
        let many = vec![r#""10.0.0.1""#; 1000].join(",");
        let ports: Vec<_> = (1..=1000).map(|port| format!(r#"{{"port":{port}}}"#)).collect();
        let json = format!(
            r#"{{"ports":[{}],"endpoints":[{{"addresses":[{many}]}}]}}"#,
            ports.join(",")
        );
        match told("EndpointSlice", &json) {
            Object::Endpoints(endpoints) => assert_eq!(endpoints.addresses.len(), MOST_ADDRESSES),
            other => panic!("{other:?}"),
        }
    }
}
