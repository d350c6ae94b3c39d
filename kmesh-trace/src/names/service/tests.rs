use super::*;
use crate::names::update::{ContainerObject, PodObject, ServicePort};

const API: SourceId = SourceId(0);
const FILE: SourceId = SourceId(1);
const SECOND: i64 = 1_000_000_000;

fn at(seconds: i64) -> WallTime {
    WallTime(seconds * SECOND)
}

fn pairs(text: &str) -> Vec<(String, String)> {
    let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
    pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

/// Ports as `80:8080`, `80:http` or `80:8080:30080`.
fn service(name: &str, ip: &str, selector: &str, ports: &[&str]) -> ServiceObject {
    let (namespace, name) = name.split_once('/').unwrap();
    ServiceObject {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        cluster_ips: ip.parse().into_iter().collect(),
        headless: ip == "None",
        selector: pairs(selector),
        ports: ports
            .iter()
            .map(|port| {
                let parts: Vec<_> = port.split(':').collect();
                ServicePort {
                    name: String::new(),
                    port: parts[0].parse().unwrap(),
                    target: parts[1]
                        .parse()
                        .map_or_else(|_| TargetPort::Name(parts[1].to_owned()), TargetPort::Number),
                    node_port: parts.get(2).map(|port| port.parse().unwrap()),
                }
            })
            .collect(),
        ..ServiceObject::default()
    }
}

fn slice(name: &str, of: &str, addresses: &[&str]) -> EndpointsObject {
    let (namespace, name) = name.split_once('/').unwrap();
    EndpointsObject {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        service: of.to_owned(),
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
    }
}

/// One pod, `shop/web` at 10.1.0.5, with `http` for 8080.
struct Scene {
    services: Services,
    pods: Pods,
}

impl Scene {
    fn new() -> Self {
        let mut pods = Pods::default();
        pods.is(
            API,
            at(1),
            &PodObject {
                uid: "web".to_owned(),
                namespace: "shop".to_owned(),
                name: "web".to_owned(),
                labels: Some(pairs("app=web,tier=front")),
                containers: vec![ContainerObject {
                    name: "server".to_owned(),
                    id: None,
                    ports: vec![("http".to_owned(), 8080)],
                }],
                ..PodObject::default()
            },
        );
        Self {
            services: Services::default(),
            pods,
        }
    }

    fn with(mut self, services: &[ServiceObject], slices: &[EndpointsObject]) -> Self {
        services.iter().for_each(|facts| self.services.is(API, at(10), facts));
        slices
            .iter()
            .for_each(|facts| self.services.endpoints_are(API, at(10), facts));
        self
    }

    fn behind(&mut self, address: &str, time: i64) -> String {
        let reference = self.pods.find("web").unwrap();
        let pod = self.pods.pod(reference).unwrap();
        let address = address.parse().unwrap();
        words(self.services.behind(address, &pod, reference, &self.pods, at(time)))
    }

    fn dialled(&self, address: &str, at_node: bool, time: i64) -> String {
        words(self.services.dialled(address.parse().unwrap(), at_node, at(time)))
    }
}

fn words(called: Option<Called>) -> String {
    called.map_or_else(
        || "-".to_owned(),
        |called| {
            let more = if called.ambiguous { " and more" } else { "" };
            let service = &called.service;
            format!("{}/{} {}{more}", service.namespace, service.name, called.by.name())
        },
    )
}

#[test]
fn what_is_dialled_is_certain() {
    let front = ServiceObject {
        external_ips: vec!["203.0.113.7".parse().unwrap()],
        ..service("shop/front", "10.96.0.1", "", &["80:8080:30080", "443:8443"])
    };
    let scene = Scene::new().with(
        &[
            front,
            service("shop/v6", "fd00:96::1", "", &["80:8080"]),
            service("b/same", "203.0.113.7", "", &["443:1"]),
            service("a/same", "203.0.113.7", "", &["9:1"]),
        ],
        &[],
    );
    let cases = [
        ("10.96.0.1:80", false, "shop/front vip"),
        ("10.96.0.1:443", false, "shop/front vip"),
        ("10.96.0.1:8080", false, "-"),
        ("10.96.0.2:80", false, "-"),
        ("203.0.113.7:80", false, "shop/front vip"),
        ("203.0.113.7:443", false, "shop/front vip and more"),
        ("203.0.113.7:9", false, "a/same vip"),
        ("[fd00:96::1]:80", false, "shop/v6 vip"),
        ("192.168.0.1:30080", true, "shop/front vip"),
        ("192.168.0.1:30080", false, "-"),
        ("192.168.0.1:80", true, "-"),
    ];
    for (address, at_node, expected) in cases {
        assert_eq!(scene.dialled(address, at_node, 20), expected, "{address}");
    }
}

#[test]
fn what_the_pod_is_behind() {
    type Case = (
        &'static str,
        Vec<ServiceObject>,
        Vec<EndpointsObject>,
        &'static str,
        &'static str,
    );
    let web = || service("shop/web", "10.96.0.1", "app=web", &["80:8080"]);
    let web_at = |address| slice("shop/web-abc", "web", &[address]);
    let cases: Vec<Case> = vec![
        ("a number", vec![web()], vec![], "10.1.0.5:8080", "shop/web target_port"),
        (
            "its own port is not the target",
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
            "a name that is another port's",
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
            "in its own namespace",
            vec![service("other/web", "10.96.0.1", "app=web", &["80:8080"])],
            vec![],
            "10.1.0.5:8080",
            "-",
        ),
        (
            "no selector selects nothing",
            vec![service("shop/web", "10.96.0.1", "", &["80:8080"])],
            vec![],
            "10.1.0.5:8080",
            "-",
        ),
        (
            "endpoints",
            vec![service("shop/web", "10.96.0.1", "", &["80:8080"])],
            vec![web_at("10.1.0.5:8080")],
            "10.1.0.5:8080",
            "shop/web target_port",
        ),
        (
            "endpoints outweigh the selector",
            vec![web()],
            vec![web_at("10.1.0.6:8080")],
            "10.1.0.5:8080",
            "-",
        ),
        (
            "endpoints whose Service is not told",
            vec![],
            vec![web_at("10.1.0.5:8080")],
            "10.1.0.5:8080",
            "shop/web target_port",
        ),
        (
            "endpoints of another namespace are of another pod",
            vec![],
            vec![slice("other/web-abc", "web", &["10.1.0.5:8080"])],
            "10.1.0.5:8080",
            "-",
        ),
        (
            "the first by name, whatever the order",
            vec![
                service("shop/c", "10.96.0.3", "tier=front", &["80:8080"]),
                service("shop/b", "10.96.0.2", "app=web", &["80:8080"]),
                service("shop/a", "10.96.0.1", "app=web", &["80:9090"]),
            ],
            vec![],
            "10.1.0.5:8080",
            "shop/b target_port and more",
        ),
        (
            "twice the same is one",
            vec![web()],
            vec![
                slice("shop/one", "web", &["10.1.0.5:8080"]),
                slice("shop/two", "web", &["10.1.0.5:8080"]),
            ],
            "10.1.0.5:8080",
            "shop/web target_port",
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
            "a target port comes before headless",
            vec![web(), service("shop/a-peers", "None", "app=web", &["80:7777"])],
            vec![],
            "10.1.0.5:8080",
            "shop/web target_port",
        ),
    ];
    for (what, services, slices, address, expected) in cases {
        let mut scene = Scene::new().with(&services, &slices);
        assert_eq!(scene.behind(address, 20), expected, "{what}");
        let reversed = |facts: Vec<ServiceObject>| facts.into_iter().rev().collect::<Vec<_>>();
        let mut scene = Scene::new().with(&reversed(services), &slices);
        assert_eq!(scene.behind(address, 20), expected, "{what}, the other way round");
    }
}

#[test]
fn a_reused_address_had_another_service_before() {
    let mut scene = Scene::new().with(
        &[service("shop/old", "10.96.0.1", "", &["80:8080"])],
        &[slice("shop/old-1", "old", &["10.1.0.5:8080"])],
    );
    scene.services.gone(API, at(100), "shop", "old");
    scene.services.endpoints_gone(API, at(100), "shop", "old-1");
    scene
        .services
        .is(API, at(120), &service("shop/new", "10.96.0.1", "", &["80:8080"]));
    scene
        .services
        .endpoints_are(API, at(120), &slice("shop/new-1", "new", &["10.1.0.5:8080"]));
    for (time, expected) in [(5, "shop/old"), (99, "shop/old"), (110, "-"), (120, "shop/new")] {
        assert!(
            scene.dialled("10.96.0.1:80", false, time).starts_with(expected),
            "{time}"
        );
        assert!(scene.behind("10.1.0.5:8080", time).starts_with(expected), "{time}");
    }
}

#[test]
fn what_stays_is_not_interrupted_by_news() {
    let mut scene = Scene::new().with(&[], &[slice("shop/web-1", "web", &["10.1.0.5:8080", "10.1.0.6:8080"])]);
    scene
        .services
        .endpoints_are(API, at(50), &slice("shop/web-1", "web", &["10.1.0.5:8080"]));
    assert_eq!(scene.behind("10.1.0.5:8080", 49), "shop/web target_port");
    assert_eq!(scene.behind("10.1.0.5:8080", 51), "shop/web target_port");
    assert_eq!(scene.behind("10.1.0.6:8080", 49), "shop/web target_port");
    assert_eq!(scene.behind("10.1.0.6:8080", 51), "-");
}

#[test]
fn what_one_source_tells_no_more_another_may() {
    let web = service("shop/web", "10.96.0.1", "app=web", &["80:8080"]);
    let mut scene = Scene::new().with(std::slice::from_ref(&web), &[]);
    scene.services.is(FILE, at(11), &web);
    scene.services.list_begins(API);
    scene.services.list_ends(API, at(20));
    assert_eq!(scene.dialled("10.96.0.1:80", false, 30), "shop/web vip");
    scene.services.gone(FILE, at(40), "shop", "web");
    assert_eq!(scene.dialled("10.96.0.1:80", false, 41), "-");
    assert_eq!(scene.dialled("10.96.0.1:80", false, 39), "shop/web vip");
    assert_eq!(scene.behind("10.1.0.5:8080", 41), "-");
}

#[test]
fn nothing_is_kept_for_ever() {
    let mut services = Services::default();
    for number in 0..10_000 {
        let name = format!("shop/s{number}");
        let time = at(100 * number);
        services.is(API, time, &service(&name, "10.96.0.1", "app=web", &["80:8080:30080"]));
        services.endpoints_are(API, time, &slice(&name, &name[5..], &["10.1.0.5:8080"]));
        services.gone(API, time, "shop", &name[5..]);
        services.endpoints_gone(API, time, "shop", &name[5..]);
        assert!(services.entries.len() < 50, "{}", services.entries.len());
    }
    assert!(services.by_name.count() < 50 && services.slices.is_empty());
    assert_eq!((services.slices_by_name.count(), services.by_selector.count()), (0, 0));
}
