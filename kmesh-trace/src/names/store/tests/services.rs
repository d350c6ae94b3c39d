//! Which Service a connection is to.

use super::*;
use crate::names::update::{EndpointsObject, ServiceObject, ServicePort, TargetPort};

/// `NAMESPACE/NAME ADDRESS SELECTOR PORTS`. The address is an assigned one, `ext:` an external one, or `None`. `-` is
/// an empty selector, or no ports. Ports are `80:8080`, `80:http` or `80:8080:30080`.
fn service(text: &str) -> Object {
    let parts: Vec<_> = text.split(' ').collect();
    let [name, ip, selector, ports] = parts[..] else {
        panic!("{text}")
    };
    let (namespace, name) = name.split_once('/').unwrap();
    let ports = ports.split(',').filter(|port| *port != "-").map(|port| {
        let parts: Vec<_> = port.split(':').collect();
        let target = parts[1].parse();
        ServicePort {
            name: String::new(),
            port: parts[0].parse().unwrap(),
            target: target.map_or_else(|_| TargetPort::Name(parts[1].to_owned()), TargetPort::Number),
            node_port: parts.get(2).map(|port| port.parse().unwrap()),
        }
    });
    let external = ip.split_once("ext:").map(|(_, ip)| ip);
    Object::Service(ServiceObject {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        cluster_ips: ip.split("ext:").next().unwrap().parse().into_iter().collect(),
        external_ips: external.map(super::ip).into_iter().collect(),
        headless: ip == "None",
        selector: pairs(&selector.replace('+', ",")),
        ports: ports.collect(),
    })
}

/// `NAMESPACE/NAME SERVICE ADDRESSES`; the Service is `-` for a slice of none.
fn slice(text: &str) -> Object {
    let parts: Vec<_> = text.split(' ').collect();
    let [name, service, addresses] = parts[..] else {
        panic!("{text}")
    };
    let (namespace, name) = name.split_once('/').unwrap();
    Object::Endpoints(EndpointsObject {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        service: service.replace('-', ""),
        addresses: addresses.split(',').map(|address| address.parse().unwrap()).collect(),
    })
}

/// One pod, `shop/web` at 10.1.0.5, whose port 8080 is called `http`; and these Services and slices.
fn store(objects: impl IntoIterator<Item = Object>) -> Store {
    let mut store = Store::default();
    let web = PodObject {
        labels: Some(pairs("app=web,tier=front")),
        containers: vec![ContainerObject {
            name: "server".to_owned(),
            id: None,
            ports: vec![("http".to_owned(), 8080)],
        }],
        ..pod("web", &["10.1.0.5"], 1)
    };
    report(&mut store, API, 1, Object::Pod(web));
    for object in objects {
        report(&mut store, API, 10, object);
    }
    store
}

fn behind(store: &mut Store, address: &str, time: i64) -> String {
    let server = find(store, "web").unwrap();
    let Store { services, pods, .. } = store;
    text(services.behind(address.parse().unwrap(), &server, pods, by_all(at(time))))
}

fn dialled(store: &Store, address: &str, at_node: bool, time: i64) -> String {
    let address: SocketAddr = address.parse().unwrap();
    let is_others = store.pods.is_pod_address(address.ip());
    let services = &store.services;
    text(services.dialled(address, at_node, is_others, by_all(at(time))))
}

fn text(found: Option<ServiceMatch>) -> String {
    let Some(found) = found else {
        return "-".to_owned();
    };
    let (service, by) = (&found.service, found.by.name());
    let more = if found.ambiguous { " ambiguous" } else { "" };
    format!("{}/{} {by}{more}", service.namespace, service.name)
}

fn delete(store: &mut Store, source: SourceId, seconds: i64, key: fn(String, String) -> Key, name: &str) {
    let change = Change::Delete(key("shop".to_owned(), name.to_owned()));
    apply(store, source, seconds, change);
}

#[test]
fn dialled_address_names_its_service() {
    let services = [
        "shop/front 10.96.0.1ext:203.0.113.7 - 80:8080:30080,443:8443",
        "shop/v6 fd00:96::1 - 80:8080",
        "shop/same ext:203.0.113.7 - 443:1",
        "a/other ext:203.0.113.8 - 9:1",
        "b/other ext:203.0.113.8 - 9:1",
    ];
    let store = store(services.map(service));
    let cases = [
        ("10.96.0.1:80", false, "shop/front vip"),
        ("10.96.0.1:443", false, "shop/front vip"),
        ("10.96.0.1:8080", false, "-"),
        ("10.96.0.2:80", false, "-"),
        ("203.0.113.7:80", false, "shop/front vip"),
        ("203.0.113.7:443", false, "shop/front vip ambiguous"),
        ("203.0.113.8:9", false, "-"),
        ("[fd00:96::1]:80", false, "shop/v6 vip"),
        ("192.168.0.1:30080", true, "shop/front vip"),
        ("192.168.0.1:30080", false, "-"),
        ("192.168.0.1:80", true, "-"),
    ];
    for (address, at_node, expected) in cases {
        assert_eq!(dialled(&store, address, at_node, 20), expected, "{address}");
    }
}

/// What a tenant writes into its own Service takes no address of others.
#[test]
fn external_address_takes_no_other_objects_address() {
    let services = [
        "shop/web 10.96.0.1 app=web 80:8080",
        "a-tenant/a ext:10.96.0.1 - 80:8080,81:81",
        "a-tenant/b ext:10.1.0.5 - 8080:8080",
    ];
    let store = store(services.map(service));
    for (address, expected) in [
        ("10.96.0.1:80", "shop/web vip"),
        ("10.96.0.1:81", "-"),
        ("10.1.0.5:8080", "-"),
    ] {
        assert_eq!(dialled(&store, address, false, 20), expected, "{address}");
    }
}

#[test]
fn pod_is_behind_a_service() {
    const WEB: &str = "shop/web 10.96.0.1 app=web 80:8080";
    const SLICE: &str = "shop/web-abc web 10.1.0.5:8080";
    const OTHER_SLICE: &str = "other/web-abc web 10.1.0.5:8080";
    const TARGET: &str = "shop/web target_port";
    const PEERS: &str = "shop/peers headless";
    /// Services, slices, the port of the pod, the Service.
    type Case<'a> = (&'a str, &'a [&'a str], &'a [&'a str], u16, &'a str);
    let cases: [Case<'_>; 23] = [
        ("a port number", &[WEB], &[], 8080, TARGET),
        ("the Service's port is no target", &[WEB], &[], 80, "-"),
        (
            "a named port",
            &["shop/web 10.96.0.1 app=web 80:http"],
            &[],
            8080,
            TARGET,
        ),
        (
            "another port's name",
            &["shop/web 10.96.0.1 app=web 80:metrics"],
            &[],
            8080,
            "-",
        ),
        (
            "all labels count",
            &["shop/web 10.96.0.1 app=web+tier=back 80:8080"],
            &[],
            8080,
            "-",
        ),
        (
            "another namespace",
            &["other/web 10.96.0.1 app=web 80:8080"],
            &[],
            8080,
            "-",
        ),
        ("an empty selector", &["shop/web 10.96.0.1 - 80:8080"], &[], 8080, "-"),
        ("endpoints", &["shop/web 10.96.0.1 - 80:8080"], &[SLICE], 8080, TARGET),
        (
            "endpoints outrank the selector",
            &[WEB],
            &["shop/web-abc web 10.1.0.6:8080"],
            8080,
            "-",
        ),
        ("endpoints whose Service is not reported", &[], &[SLICE], 8080, TARGET),
        (
            "endpoints of another namespace",
            &[],
            &[OTHER_SLICE],
            8080,
            "other/web target_port",
        ),
        (
            "endpoints of two other namespaces",
            &[],
            &[OTHER_SLICE, "third/web-abc web 10.1.0.5:8080"],
            8080,
            "-",
        ),
        (
            "endpoints of another namespace tie with none of its own",
            &[WEB],
            &["a-tenant/a a 10.1.0.5:8080"],
            8080,
            TARGET,
        ),
        (
            "the alphabetically first of one namespace",
            &[
                "shop/c 10.96.0.3 tier=front 80:8080",
                "shop/b 10.96.0.2 app=web 80:8080",
                "shop/a 10.96.0.1 app=web 80:9090",
            ],
            &[],
            8080,
            "shop/b target_port ambiguous",
        ),
        (
            "two slices of one Service",
            &[WEB],
            &["shop/one web 10.1.0.5:8080", "shop/two web 10.1.0.5:8080"],
            8080,
            TARGET,
        ),
        (
            "a slice of no Service",
            &[],
            &["shop/web-abc - 10.1.0.5:8080"],
            8080,
            "-",
        ),
        (
            "headless, another port",
            &["shop/peers None app=web 80:7777"],
            &[],
            8080,
            PEERS,
        ),
        ("headless, without ports", &["shop/peers None app=web -"], &[], 1, PEERS),
        (
            "headless, by endpoints",
            &["shop/peers None - 80:7777"],
            &["shop/peers-1 peers 10.1.0.5:7777"],
            8080,
            PEERS,
        ),
        (
            "headless, without ports, by endpoints",
            &["shop/peers None - -"],
            &["shop/peers-1 peers 10.1.0.5:0"],
            8080,
            PEERS,
        ),
        (
            "an own headless Service outranks a port of another namespace",
            &["shop/peers None app=web -"],
            &["mall/a a 10.1.0.5:8080"],
            8080,
            PEERS,
        ),
        (
            "another namespace takes no port of a pod that an own Service leads to",
            &[WEB],
            &["mall/a a 10.1.0.5:9090"],
            9090,
            "-",
        ),
        (
            "a target port outranks headless",
            &[WEB, "shop/a-peers None app=web 80:7777"],
            &[],
            8080,
            TARGET,
        ),
    ];
    for (what, services, slices, port, expected) in cases {
        let address = format!("10.1.0.5:{port}");
        let services = services.iter().copied().map(service);
        let slices = || slices.iter().copied().map(slice);
        let mut in_order = store(services.clone().chain(slices()));
        assert_eq!(behind(&mut in_order, &address, 20), expected, "{what}");
        let mut reversed = store(services.rev().chain(slices()));
        assert_eq!(behind(&mut reversed, &address, 20), expected, "{what}, reversed");
    }
}

#[test]
fn reused_address_was_another_services_before() {
    let mut store = store([
        service("shop/old 10.96.0.1 - 80:8080"),
        slice("shop/old-1 old 10.1.0.5:8080"),
    ]);
    delete(&mut store, API, 100, Key::Service, "old");
    delete(&mut store, API, 100, Key::Endpoints, "old-1");
    report(&mut store, API, 120, service("shop/new 10.96.0.1 - 80:8080"));
    report(&mut store, API, 120, slice("shop/new-1 new 10.1.0.5:8080"));
    for (time, expected) in [(5, "shop/old"), (99, "shop/old"), (110, "-"), (120, "shop/new")] {
        let found = [
            dialled(&store, "10.96.0.1:80", false, time),
            behind(&mut store, "10.1.0.5:8080", time),
        ];
        assert!(
            found.iter().all(|found| found.starts_with(expected)),
            "{time}: {found:?}"
        );
    }
}

#[test]
fn update_does_not_interrupt_endpoints_that_stay() {
    let mut store = store([slice("shop/web-1 web 10.1.0.5:8080,10.1.0.6:8080")]);
    report(&mut store, API, 50, slice("shop/web-1 web 10.1.0.5:8080"));
    for (address, time, expected) in [
        ("10.1.0.5:8080", 49, "shop/web target_port"),
        ("10.1.0.5:8080", 51, "shop/web target_port"),
        ("10.1.0.6:8080", 49, "shop/web target_port"),
        ("10.1.0.6:8080", 51, "-"),
    ] {
        assert_eq!(behind(&mut store, address, time), expected, "{address} at {time}");
    }
}

#[test]
fn service_stays_while_one_source_reports_it() {
    let web = || service("shop/web 10.96.0.1 app=web 80:8080");
    let mut store = store([web()]);
    report(&mut store, KUBELET, 11, web());
    apply(&mut store, API, 20, Change::ListEnd(Scope::All(Kind::Services)));
    assert_eq!(dialled(&store, "10.96.0.1:80", false, 30), "shop/web vip");
    delete(&mut store, KUBELET, 40, Key::Service, "web");
    assert_eq!(dialled(&store, "10.96.0.1:80", false, 41), "-");
    assert_eq!(dialled(&store, "10.96.0.1:80", false, 39), "shop/web vip");
    assert_eq!(behind(&mut store, "10.1.0.5:8080", 41), "-");
}

#[test]
fn services_that_are_gone_leave_nothing_behind() {
    let mut store = store([]);
    for number in 0..10_000 {
        let (name, time) = (format!("s{number}"), 100 * number);
        let object = service(&format!("shop/{name} 10.96.0.1 app=web 80:8080:30080"));
        report(&mut store, API, time, object);
        let endpoints = slice(&format!("shop/{name} {name} 10.1.0.5:8080"));
        report(&mut store, API, time, endpoints);
        delete(&mut store, API, time, Key::Service, &name);
        delete(&mut store, API, time, Key::Endpoints, &name);
        assert!(store.services.len() < 50, "{}", store.services.len());
    }
}
