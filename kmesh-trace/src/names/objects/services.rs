//! Parses objects of kind Service.

use serde::Deserialize;

use super::{Bounded, Ip, LabelMap, Meta, Text, ip, is_tcp, port};
use crate::names::update::{ServiceObject, ServicePort, TargetPort};

const MAX_PORTS: usize = 1_000;
/// The largest number of addresses of a Service, of each field.
const MAX_ADDRESSES: usize = 256;
/// The largest number of pairs of an address and a port. Each change of the Service opens or closes a span for each.
const MAX_PAIRS: usize = 4_096;

#[derive(Default, Deserialize)]
#[serde(default)]
pub struct RawService {
    metadata: Option<Meta>,
    spec: Option<ServiceSpec>,
    status: Option<ServiceStatus>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ServiceSpec {
    r#type: Text,
    #[serde(rename = "clusterIP")]
    cluster_ip: Text,
    #[serde(rename = "clusterIPs")]
    cluster_ips: Bounded<Text, MAX_ADDRESSES>,
    #[serde(rename = "externalIPs")]
    external_ips: Bounded<Text, MAX_ADDRESSES>,
    selector: LabelMap,
    ports: Bounded<RawPort, MAX_PORTS>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawPort {
    name: Text,
    protocol: Text,
    port: Option<i64>,
    target_port: Option<NumberOrName>,
    node_port: Option<i64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum NumberOrName {
    Number(i64),
    Name(Text),
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ServiceStatus {
    load_balancer: Option<LoadBalancer>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct LoadBalancer {
    ingress: Bounded<Ip, MAX_ADDRESSES>,
}

impl RawPort {
    fn service_port(self) -> Option<ServicePort> {
        let number = port(self.port.filter(|_| is_tcp(&self.protocol))?)?;
        Some(ServicePort {
            name: self.name.0,
            port: number,
            target: match self.target_port {
                Some(NumberOrName::Name(Text(name))) if !name.is_empty() => TargetPort::Name(name),
                Some(NumberOrName::Number(target)) => TargetPort::Number(port(target).unwrap_or(number)),
                _ => TargetPort::Number(number),
            },
            node_port: self.node_port.and_then(port),
        })
    }
}

impl RawService {
    /// Returns the Service as the store takes it; `None` if its selector is too large, or it has too many addresses.
    pub fn object(self) -> Option<ServiceObject> {
        let meta = self.metadata.unwrap_or_default();
        let spec = self.spec.unwrap_or_default();
        let balancer = self.status.and_then(|status| status.load_balancer).unwrap_or_default();
        let selector = spec.selector.0?;
        let mut service = ServiceObject {
            namespace: meta.namespace.0,
            name: meta.name.0,
            ..ServiceObject::default()
        };
        // Such a Service is a name in DNS: it has neither addresses nor endpoints, whatever else is left in it.
        if spec.r#type.0 == "ExternalName" {
            return Some(service);
        }
        service.selector = selector;
        service.cluster_ips = spec.cluster_ips.0.iter().filter_map(|text| ip(&text.0)).collect();
        if service.cluster_ips.is_empty() {
            service.cluster_ips.extend(ip(&spec.cluster_ip.0));
        }
        service.ports = spec.ports.0.into_iter().filter_map(RawPort::service_port).collect();
        service.headless = spec.cluster_ip.0 == "None";
        if service.headless {
            // Nothing translates for a headless Service.
            service.ports.iter_mut().for_each(|port| port.node_port = None);
        } else {
            let ingress = balancer.ingress.0.iter().map(|one| &one.ip);
            let external_ips = spec.external_ips.0.iter().chain(ingress);
            service.external_ips = external_ips.filter_map(|text| ip(&text.0)).collect();
        }
        let addresses = service.cluster_ips.len() + service.external_ips.len();
        (addresses * service.ports.len() <= MAX_PAIRS).then_some(service)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::objects::{MAX_LABEL_BYTES, ObjectError, Writer, parse, parsed};
    use crate::names::update::Object;

    fn service(json: &str) -> ServiceObject {
        match parsed("Service", json) {
            Object::Service(service) => service,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn service_has_its_addresses_and_tcp_ports() {
        let found = service(
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
        assert_eq!(found, expected);
    }

    #[test]
    fn headless_services_have_no_address() {
        let headless = service(
            r#"{"metadata":{"name":"a"},
              "spec":{"clusterIP":"None","clusterIPs":["None"],"selector":null,"ports":null}}"#,
        );
        assert_eq!((headless.headless, headless.cluster_ips), (true, vec![]));
        let external =
            service(r#"{"metadata":{"name":"a"},"spec":{"type":"ExternalName","externalName":"db.example"}}"#);
        assert_eq!((external.headless, external.cluster_ips), (false, vec![]));
    }

    #[test]
    fn external_name_service_has_only_its_name() {
        let spec = |kind: &str| {
            format!(
                r#"{{"metadata":{{"name":"a"}},"spec":{{"type":"{kind}","selector":{{"app":"web"}},
                  "clusterIP":"10.96.0.7","externalIPs":["192.0.2.1"],
                  "ports":[{{"port":80,"targetPort":8080,"nodePort":30080}}]}},
                  "status":{{"loadBalancer":{{"ingress":[{{"ip":"198.51.100.1"}}]}}}}}}"#
            )
        };
        let of_cluster = service(&spec("ClusterIP"));
        assert_eq!((of_cluster.selector.len(), of_cluster.external_ips.len()), (1, 2));
        let expected = ServiceObject {
            name: "a".to_owned(),
            ..ServiceObject::default()
        };
        assert_eq!(service(&spec("ExternalName")), expected);
    }

    #[test]
    fn headless_service_is_dialled_by_no_other_address() {
        let headless = service(
            r#"{"metadata":{"name":"a"},"spec":{"clusterIP":"None","externalIPs":["192.0.2.1"],"selector":{"app":"a"},
              "ports":[{"port":80,"nodePort":30080}]}}"#,
        );
        assert_eq!((headless.external_ips, headless.ports[0].node_port), (vec![], None));
    }

    #[test]
    fn service_with_too_many_addresses_is_left_out() {
        let parsed = |ports: usize, addresses: usize| {
            let ports: Vec<_> = (1..=ports).map(|port| format!(r#"{{"port":{port}}}"#)).collect();
            let addresses: Vec<_> = (1..=addresses).map(|number| format!(r#""192.0.2.{number}""#)).collect();
            let (ports, addresses) = (ports.join(","), addresses.join(","));
            let json = format!(
                r#"{{"metadata":{{"name":"a"}},
                  "spec":{{"clusterIP":"10.96.0.7","ports":[{ports}],"externalIPs":[{addresses}]}}}}"#
            );
            parse("Service", json.as_bytes(), Writer::ApiServer).is_ok()
        };
        assert!(parsed(1_000, 3));
        assert!(!parsed(1_000, 4));
        assert!(!parsed(100, 200));
    }

    #[test]
    fn service_with_a_selector_that_is_too_large_is_left_out() {
        let value = "v".repeat(MAX_LABEL_BYTES);
        let json = format!(r#"{{"metadata":{{"name":"a"}},"spec":{{"selector":{{"app":"{value}"}}}}}}"#);
        let parsed = parse("Service", json.as_bytes(), Writer::ApiServer);
        assert_eq!(parsed, Err(ObjectError::WrongType));
    }
}
