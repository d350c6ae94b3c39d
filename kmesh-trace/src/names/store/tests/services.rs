//! Which Service a connection is to.

use super::*;
use crate::names::update::{EndpointsObject, ServiceObject, ServicePort, TargetPort};
use crate::record::ServiceMatch;

/// Ports as `80:8080`, `80:http` or `80:8080:30080`.
fn service(name: &str, ip: &str, selector: &str, ports: &[&str]) -> ServiceObject {
    let (namespace, name) = name.split_once('/').unwrap();
    let ports = ports.iter().map(|port| {
        let parts: Vec<_> = port.split(':').collect();
        let target = parts[1].parse();
        ServicePort {
            name: String::new(),
            port: parts[0].parse().unwrap(),
            target: target.map_or_else(|_| TargetPort::Name(parts[1].to_owned()), TargetPort::Number),
            node_port: parts.get(2).map(|port| port.parse().unwrap()),
        }
    });
    ServiceObject {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        cluster_ips: ip.parse().into_iter().collect(),
        headless: ip == "None",
        selector: pairs(selector),
        ports: ports.collect(),
        ..ServiceObject::default()
    }
}

fn external(name: &str, ip: &str, ports: &[&str]) -> ServiceObject {
    ServiceObject {
        external_ips: vec![super::ip(ip)],
        ..service(name, "", "", ports)
    }
}

fn slice(name: &str, service: &str, addresses: &[&str]) -> EndpointsObject {
    let (namespace, name) = name.split_once('/').unwrap();
    EndpointsObject {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        service: service.to_owned(),
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
    }
}

/// One pod, `shop/web` at 10.1.0.5, whose port 8080 is called `http`.
fn store(services: &[ServiceObject], slices: &[EndpointsObject]) -> Store {
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
    for service in services {
        report(&mut store, API, 10, Object::Service(service.clone()));
    }
    for slice in slices {
        report(&mut store, API, 10, Object::Endpoints(slice.clone()));
    }
    store
}

fn behind(store: &mut Store, address: &str, time: i64) -> String {
    let Found { reference, pod } = store.find("web").unwrap();
    let address = address.parse().unwrap();
    let Store { services, pods, .. } = store;
    text(services.behind(address, &pod, reference, pods, at(time), SourceSet::ALL))
}

fn dialled(store: &Store, address: &str, at_node: bool, time: i64) -> String {
    let address: SocketAddr = address.parse().unwrap();
    let is_others = store.pods.is_pod_address(address.ip());
    text(
        store
            .services
            .dialled(address, at_node, is_others, at(time), SourceSet::ALL),
    )
}

fn text(called: Option<ServiceMatch>) -> String {
    called.map_or_else(
        || "-".to_owned(),
        |called| {
            let more = if called.ambiguous { " ambiguous" } else { "" };
            let service = &called.service;
            format!("{}/{} {}{more}", service.namespace, service.name, called.by.name())
        },
    )
}

#[test]
fn a_dialled_address_is_its_services() {
    let front = ServiceObject {
        external_ips: vec![ip("203.0.113.7")],
        ..service("shop/front", "10.96.0.1", "", &["80:8080:30080", "443:8443"])
    };
    let store = store(
        &[
            front,
            service("shop/v6", "fd00:96::1", "", &["80:8080"]),
            external("shop/same", "203.0.113.7", &["443:1"]),
            external("a/other", "203.0.113.8", &["9:1"]),
            external("b/other", "203.0.113.8", &["9:1"]),
        ],
        &[],
    );
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
fn an_external_address_takes_no_other_objects_address() {
    let store = store(
        &[
            service("shop/web", "10.96.0.1", "app=web", &["80:8080"]),
            external("a-tenant/a", "10.96.0.1", &["80:8080", "81:81"]),
            external("a-tenant/b", "10.1.0.5", &["8080:8080"]),
        ],
        &[],
    );
    for (address, expected) in [
        ("10.96.0.1:80", "shop/web vip"),
        ("10.96.0.1:81", "-"),
        ("10.1.0.5:8080", "-"),
    ] {
        assert_eq!(dialled(&store, address, false, 20), expected, "{address}");
    }
}

#[test]
fn a_pod_is_behind_a_service() {
    type Case = (
        &'static str,
        Vec<ServiceObject>,
        Vec<EndpointsObject>,
        &'static str,
        &'static str,
    );
    let web = || service("shop/web", "10.96.0.1", "app=web", &["80:8080"]);
    let web_slice = |address| slice("shop/web-abc", "web", &[address]);
    let cases: Vec<Case> = vec![
        (
            "a port number",
            vec![web()],
            vec![],
            "10.1.0.5:8080",
            "shop/web target_port",
        ),
        (
            "the Service's port is no target",
            vec![web()],
            vec![],
            "10.1.0.5:80",
            "-",
        ),
        (
            "a named port",
            vec![service("shop/web", "10.96.0.1", "app=web", &["80:http"])],
            vec![],
            "10.1.0.5:8080",
            "shop/web target_port",
        ),
        (
            "a name of another port",
            vec![service("shop/web", "10.96.0.1", "app=web", &["80:metrics"])],
            vec![],
            "10.1.0.5:8080",
            "-",
        ),
        (
            "all labels of the selector count",
            vec![service("shop/web", "10.96.0.1", "app=web,tier=back", &["80:8080"])],
            vec![],
            "10.1.0.5:8080",
            "-",
        ),
        (
            "a selector of another namespace",
            vec![service("other/web", "10.96.0.1", "app=web", &["80:8080"])],
            vec![],
            "10.1.0.5:8080",
            "-",
        ),
        (
            "an empty selector",
            vec![service("shop/web", "10.96.0.1", "", &["80:8080"])],
            vec![],
            "10.1.0.5:8080",
            "-",
        ),
        (
            "endpoints",
            vec![service("shop/web", "10.96.0.1", "", &["80:8080"])],
            vec![web_slice("10.1.0.5:8080")],
            "10.1.0.5:8080",
            "shop/web target_port",
        ),
        (
            "endpoints outrank the selector",
            vec![web()],
            vec![web_slice("10.1.0.6:8080")],
            "10.1.0.5:8080",
            "-",
        ),
        (
            "endpoints whose Service is not reported",
            vec![],
            vec![web_slice("10.1.0.5:8080")],
            "10.1.0.5:8080",
            "shop/web target_port",
        ),
        (
            "endpoints of another namespace, where there are no others",
            vec![],
            vec![slice("other/web-abc", "web", &["10.1.0.5:8080"])],
            "10.1.0.5:8080",
            "other/web target_port",
        ),
        (
            "endpoints of two other namespaces",
            vec![],
            vec![
                slice("other/web-abc", "web", &["10.1.0.5:8080"]),
                slice("third/web-abc", "web", &["10.1.0.5:8080"]),
            ],
            "10.1.0.5:8080",
            "-",
        ),
        (
            "endpoints of another namespace tie with none of its own",
            vec![web()],
            vec![slice("a-tenant/a", "a", &["10.1.0.5:8080"])],
            "10.1.0.5:8080",
            "shop/web target_port",
        ),
        (
            "the alphabetically first of one namespace",
            vec![
                service("shop/c", "10.96.0.3", "tier=front", &["80:8080"]),
                service("shop/b", "10.96.0.2", "app=web", &["80:8080"]),
                service("shop/a", "10.96.0.1", "app=web", &["80:9090"]),
            ],
            vec![],
            "10.1.0.5:8080",
            "shop/b target_port ambiguous",
        ),
        (
            "two slices of one Service",
            vec![web()],
            vec![
                slice("shop/one", "web", &["10.1.0.5:8080"]),
                slice("shop/two", "web", &["10.1.0.5:8080"]),
            ],
            "10.1.0.5:8080",
            "shop/web target_port",
        ),
        (
            "a slice of no Service",
            vec![],
            vec![slice("shop/web-abc", "", &["10.1.0.5:8080"])],
            "10.1.0.5:8080",
            "-",
        ),
        (
            "headless, another port",
            vec![service("shop/peers", "None", "app=web", &["80:7777"])],
            vec![],
            "10.1.0.5:8080",
            "shop/peers headless",
        ),
        (
            "headless, without ports",
            vec![service("shop/peers", "None", "app=web", &[])],
            vec![],
            "10.1.0.5:1",
            "shop/peers headless",
        ),
        (
            "headless, by endpoints",
            vec![service("shop/peers", "None", "", &["80:7777"])],
            vec![slice("shop/peers-1", "peers", &["10.1.0.5:7777"])],
            "10.1.0.5:8080",
            "shop/peers headless",
        ),
        (
            "a target port outranks headless",
            vec![web(), service("shop/a-peers", "None", "app=web", &["80:7777"])],
            vec![],
            "10.1.0.5:8080",
            "shop/web target_port",
        ),
    ];
    for (what, services, slices, address, expected) in cases {
        assert_eq!(behind(&mut store(&services, &slices), address, 20), expected, "{what}");
        let reversed: Vec<_> = services.into_iter().rev().collect();
        assert_eq!(
            behind(&mut store(&reversed, &slices), address, 20),
            expected,
            "{what}, reversed"
        );
    }
}

#[test]
fn a_reused_address_was_another_services_before() {
    let mut store = store(
        &[service("shop/old", "10.96.0.1", "", &["80:8080"])],
        &[slice("shop/old-1", "old", &["10.1.0.5:8080"])],
    );
    let key = |name: &str| ("shop".to_owned(), name.to_owned());
    let (namespace, name) = key("old");
    apply(&mut store, API, 100, Change::Delete(Key::Service(namespace, name)));
    let (namespace, name) = key("old-1");
    apply(&mut store, API, 100, Change::Delete(Key::Endpoints(namespace, name)));
    report(
        &mut store,
        API,
        120,
        Object::Service(service("shop/new", "10.96.0.1", "", &["80:8080"])),
    );
    report(
        &mut store,
        API,
        120,
        Object::Endpoints(slice("shop/new-1", "new", &["10.1.0.5:8080"])),
    );
    for (time, expected) in [(5, "shop/old"), (99, "shop/old"), (110, "-"), (120, "shop/new")] {
        assert!(
            dialled(&store, "10.96.0.1:80", false, time).starts_with(expected),
            "{time}"
        );
        assert!(
            behind(&mut store, "10.1.0.5:8080", time).starts_with(expected),
            "{time}"
        );
    }
}

#[test]
fn endpoints_that_stay_are_not_interrupted_by_an_update() {
    let both = slice("shop/web-1", "web", &["10.1.0.5:8080", "10.1.0.6:8080"]);
    let mut store = store(&[], &[both]);
    report(
        &mut store,
        API,
        50,
        Object::Endpoints(slice("shop/web-1", "web", &["10.1.0.5:8080"])),
    );
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
fn a_service_stays_while_one_source_reports_it() {
    let web = service("shop/web", "10.96.0.1", "app=web", &["80:8080"]);
    let mut store = store(std::slice::from_ref(&web), &[]);
    report(&mut store, KUBELET, 11, Object::Service(web));
    apply(&mut store, API, 20, Change::ListEnd(Scope::All(Kind::Services)));
    assert_eq!(dialled(&store, "10.96.0.1:80", false, 30), "shop/web vip");
    let key = Key::Service("shop".to_owned(), "web".to_owned());
    apply(&mut store, KUBELET, 40, Change::Delete(key));
    assert_eq!(dialled(&store, "10.96.0.1:80", false, 41), "-");
    assert_eq!(dialled(&store, "10.96.0.1:80", false, 39), "shop/web vip");
    assert_eq!(behind(&mut store, "10.1.0.5:8080", 41), "-");
}

#[test]
fn services_that_are_gone_leave_nothing_behind() {
    let mut store = store(&[], &[]);
    for number in 0..10_000 {
        let name = format!("shop/s{number}");
        let time = 100 * number;
        report(
            &mut store,
            API,
            time,
            Object::Service(service(&name, "10.96.0.1", "app=web", &["80:8080:30080"])),
        );
        report(
            &mut store,
            API,
            time,
            Object::Endpoints(slice(&name, &name[5..], &["10.1.0.5:8080"])),
        );
        let key = || ("shop".to_owned(), name[5..].to_owned());
        apply(&mut store, API, time, Change::Delete(Key::Service(key().0, key().1)));
        apply(&mut store, API, time, Change::Delete(Key::Endpoints(key().0, key().1)));
        assert!(store.services.len() < 50, "{}", store.services.len());
    }
}
