//! Services.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Ip, KubeObject, Meta, ip, is_tcp, or_default, pairs, port};
use crate::names::update::{Key, Kind, Object, ServiceObject, ServicePort, TargetPort};

/// `v1` `Service`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Service {
    #[serde(deserialize_with = "or_default")]
    metadata: Meta,
    spec: Option<ServiceSpec>,
    status: Option<ServiceStatus>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ServiceSpec {
    #[serde(rename = "clusterIP")]
    cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs")]
    cluster_ips: Option<Vec<String>>,
    #[serde(rename = "externalIPs")]
    external_ips: Option<Vec<String>>,
    selector: Option<BTreeMap<String, Option<String>>>,
    ports: Option<Vec<Port>>,
}

/// A port.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Port {
    name: Option<String>,
    protocol: Option<String>,
    port: Option<i64>,
    target_port: Option<NumberOrName>,
    node_port: Option<i64>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum NumberOrName {
    Number(i64),
    Name(String),
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ServiceStatus {
    load_balancer: Option<LoadBalancer>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct LoadBalancer {
    ingress: Option<Vec<Ip>>,
}

impl Port {
    fn fact(self) -> Option<ServicePort> {
        let number = port(self.port.filter(|_| is_tcp(self.protocol.as_deref()))?)?;
        Some(ServicePort {
            name: self.name.unwrap_or_default(),
            port: number,
            target: match self.target_port {
                Some(NumberOrName::Name(name)) if !name.is_empty() => TargetPort::Name(name),
                Some(NumberOrName::Number(target)) => TargetPort::Number(port(target).unwrap_or(number)),
                _ => TargetPort::Number(number),
            },
            node_port: self.node_port.and_then(port),
        })
    }
}

impl KubeObject for Service {
    const KIND: &'static str = "Service";
    const TELLS: Kind = Kind::Services;

    fn meta(&self) -> &Meta {
        &self.metadata
    }

    fn key(&self) -> Key {
        let (namespace, name) = self.metadata.names();
        Key::Service(namespace, name)
    }

    fn fact(self) -> Object {
        let (namespace, name) = self.metadata.names();
        let spec = self.spec.unwrap_or_default();
        let ingress = self.status.and_then(|status| status.load_balancer?.ingress);
        let mut cluster_ips: Vec<_> = spec.cluster_ips.iter().flatten().filter_map(|text| ip(text)).collect();
        if cluster_ips.is_empty() {
            cluster_ips.extend(spec.cluster_ip.as_deref().and_then(ip));
        }
        Object::Service(ServiceObject {
            namespace,
            name,
            cluster_ips,
            external_ips: (spec.external_ips.iter().flatten().map(String::as_str))
                .chain(ingress.iter().flatten().filter_map(|one| one.ip.as_deref()))
                .filter_map(ip)
                .collect(),
            headless: spec.cluster_ip.as_deref() == Some("None"),
            selector: pairs(spec.selector),
            ports: spec.ports.into_iter().flatten().filter_map(Port::fact).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::objects::told;

    fn service(json: &str) -> ServiceObject {
        match told("Service", json) {
            Object::Service(service) => service,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_service_tells_its_addresses_and_tcp_ports() {
        let told = service(
            r#"{"metadata":{"name":"web","namespace":"shop"},
              "spec":{"clusterIP":"10.96.0.7","clusterIPs":["10.96.0.7","fd00::7"],"externalIPs":["192.0.2.1"],
                "selector":{"app":"web"},"ports":[
                  {"name":"http","port":80,"targetPort":"http","nodePort":30080,"protocol":"TCP"},
                  {"port":443,"targetPort":8443},{"port":81},{"name":"dns","port":53,"protocol":"UDP"},
                  {"port":82,"targetPort":0},{"port":0},{}]},
              "status":{"loadBalancer":{"ingress":[{"ip":"198.51.100.1"},{"hostname":"lb.example"}]}}}"#,
        );
        let port = |name: &str, port, target, node_port| ServicePort {
            name: name.to_owned(),
            port,
            target,
            node_port,
        };
        let expected = ServiceObject {
            namespace: "shop".to_owned(),
            name: "web".to_owned(),
            cluster_ips: vec!["10.96.0.7".parse().unwrap(), "fd00::7".parse().unwrap()],
            external_ips: vec!["192.0.2.1".parse().unwrap(), "198.51.100.1".parse().unwrap()],
            headless: false,
            selector: vec![("app".to_owned(), "web".to_owned())],
            ports: vec![
                port("http", 80, TargetPort::Name("http".to_owned()), Some(30080)),
                port("", 443, TargetPort::Number(8443), None),
                port("", 81, TargetPort::Number(81), None),
                port("", 82, TargetPort::Number(82), None),
            ],
        };
        assert_eq!(told, expected);
    }

    #[test]
    fn headless_services_have_no_address() {
        let headless = service(r#"{"spec":{"clusterIP":"None","clusterIPs":["None"],"selector":null,"ports":null}}"#);
        assert_eq!((headless.headless, headless.cluster_ips), (true, vec![]));
        let external = service(r#"{"spec":{"type":"ExternalName","externalName":"db.example"}}"#);
        assert_eq!((external.headless, external.cluster_ips), (false, vec![]));
        assert_eq!(service("{}"), ServiceObject::default());
    }
}
