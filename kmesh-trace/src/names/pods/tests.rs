use super::*;
use crate::names::update::{ContainerObject, ControllerRef, Owner as SourceUpdate};
use crate::render::testing::random;

const API: SourceId = SourceId(0);
const KUBELET: SourceId = SourceId(1);
const LOGS: SourceId = SourceId(2);
const SECOND: i64 = 1_000_000_000;

fn at(seconds: i64) -> WallTime {
    WallTime(seconds * SECOND)
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A pod whose UID is its name.
fn pod(name: &str, ips: &[&str], started: i64) -> PodObject {
    PodObject {
        uid: name.to_owned(),
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        host_network: Some(false),
        ips: ips.iter().map(|one| ip(one)).collect(),
        started: Some(at(started)),
        ..PodObject::default()
    }
}

fn over(facts: PodObject) -> PodObject {
    PodObject {
        terminal: true,
        ..facts
    }
}

fn holder(pods: &mut Pods, address: &str, time: WallTime) -> Option<String> {
    let found = pods.holder(ip(address), time)?;
    pods.pod(found).map(|pod| pod.name.to_string())
}

fn found(pods: &mut Pods, uid: &str) -> Option<Arc<Pod>> {
    let found = pods.find(uid)?;
    pods.pod(found)
}

/// What happens, and then who had an address when.
#[expect(clippy::large_enum_variant, reason = "a few in a table")]
enum Step {
    Is(i64, PodObject),
    Gone(i64, &'static str),
    /// A whole list of the kubelet.
    Lists(i64, Vec<PodObject>),
}
use Step::{Gone, Is, Lists};

fn after(steps: Vec<Step>) -> Pods {
    let mut pods = Pods::default();
    for step in steps {
        match step {
            Is(time, facts) => pods.is(API, at(time), &facts),
            Gone(time, uid) => pods.gone(API, at(time), uid),
            Lists(time, all) => {
                pods.list_begins(KUBELET);
                all.iter().for_each(|facts| pods.is(KUBELET, at(time), facts));
                pods.list_ends(KUBELET, at(time));
            }
        }
    }
    pods
}

#[test]
fn an_address_has_a_holder_for_a_time() {
    const X: &str = "10.1.0.5";
    let a = || pod("a", &[X], 100);
    let b = || pod("b", &[X], 200);
    let host = |facts| PodObject {
        host_network: Some(true),
        ..facts
    };
    type Case = (&'static str, Vec<Step>, &'static [(i64, Option<&'static str>)]);
    let cases: Vec<Case> = vec![
        (
            "from when it was started, though that was told later",
            vec![Is(150, a())],
            &[(99, None), (100, Some("a")), (150, Some("a")), (1000, Some("a"))],
        ),
        (
            "one after the other, each seen",
            vec![Is(110, a()), Gone(180, "a"), Is(205, b())],
            &[
                (120, Some("a")),
                (179, Some("a")),
                (181, None),
                (201, Some("b")),
                (300, Some("b")),
            ],
        ),
        (
            "the first is told to have gone after the second has come",
            vec![Is(110, a()), Is(205, b()), Gone(210, "a")],
            &[
                (120, Some("a")),
                (197, Some("a")),
                (203, None),
                (205, Some("b")),
                (209, Some("b")),
            ],
        ),
        (
            "the first is never told to have gone",
            vec![Is(110, a()), Is(205, b())],
            &[(120, Some("a")), (203, None), (206, Some("b"))],
        ),
        (
            "it is over, and stays listed",
            vec![Is(110, a()), Is(180, over(a())), Is(190, over(a())), Is(205, b())],
            &[(120, Some("a")), (181, None), (203, Some("b"))],
        ),
        (
            "it was over when it was first told: it may have been there, and nobody else surely was",
            vec![Is(110, a()), Is(230, over(b()))],
            &[(120, Some("a")), (210, None), (240, Some("a"))],
        ),
        (
            "over when first told, alone",
            vec![Is(230, over(b()))],
            &[(150, None), (210, None), (240, None)],
        ),
        (
            "two at once are a fault of somebody's",
            vec![Is(250, a()), Is(250, b())],
            &[(150, Some("a")), (220, None), (260, None)],
        ),
        (
            "absent from a list, and back in the next",
            vec![Lists(110, vec![a()]), Lists(150, vec![]), Lists(152, vec![a()])],
            &[(120, Some("a")), (151, Some("a")), (160, Some("a"))],
        ),
        (
            "absent from a list",
            vec![Lists(110, vec![a()]), Lists(150, vec![])],
            &[(120, Some("a")), (149, Some("a")), (151, None)],
        ),
        (
            "absent from one source's list while another tells of it",
            vec![Is(100, a()), Lists(110, vec![a()]), Lists(150, vec![])],
            &[(151, Some("a"))],
        ),
        (
            "gone, and what others had listed of it does not count",
            vec![Lists(110, vec![a()]), Is(120, a()), Lists(150, vec![]), Gone(160, "a")],
            &[(155, Some("a")), (161, None)],
        ),
        (
            "another address",
            vec![Is(110, a()), Is(180, pod("a", &["10.1.0.6"], 100)), Is(205, b())],
            &[(120, Some("a")), (179, Some("a")), (181, None), (206, Some("b"))],
        ),
        (
            "old news changes nothing",
            vec![Is(110, a()), Is(180, pod("a", &["10.1.0.6"], 100)), Is(150, a())],
            &[(120, Some("a")), (181, None)],
        ),
        ("the node's address", vec![Is(110, host(a()))], &[(120, None)]),
        (
            "the node's address, told by one who did not know",
            vec![
                Is(
                    110,
                    PodObject {
                        host_network: None,
                        ..a()
                    },
                ),
                Lists(115, vec![host(a())]),
            ],
            &[(112, None), (120, None)],
        ),
        (
            "a clock that is a second ahead misleads nobody",
            vec![Is(110, a()), Is(199, b())],
            &[(198, None), (199, Some("b")), (201, Some("b"))],
        ),
    ];
    for (what, steps, expected) in cases {
        let mut pods = after(steps);
        for (time, name) in expected {
            assert_eq!(holder(&mut pods, X, at(*time)).as_deref(), *name, "{what}, at {time}");
        }
    }
}

#[test]
fn every_address_of_a_pod_is_its() {
    let mut pods = after(vec![
        Is(10, pod("a", &["::ffff:10.1.0.5", "fd00::5"], 1)),
        Is(10, pod("b", &["10.1.0.6"], 1)),
        Is(11, pod("b", &["10.1.0.6", "fd00::6"], 1)),
        Is(12, pod("b", &["fd00::6"], 1)),
        Is(10, pod("c", &["127.0.0.1", "::", "224.0.0.1"], 1)),
    ]);
    for (address, name) in [
        ("10.1.0.5", Some("a")),
        ("fd00::5", Some("a")),
        ("10.1.0.6", Some("b")),
        ("fd00::6", Some("b")),
        ("127.0.0.1", None),
        ("::", None),
        ("224.0.0.1", None),
    ] {
        assert_eq!(holder(&mut pods, address, at(20)).as_deref(), name, "{address}");
    }
}

#[test]
fn what_several_sources_know_comes_together() {
    let mut pods = Pods::default();
    let from_logs = PodObject {
        uid: "u".to_owned(),
        namespace: "shop".to_owned(),
        name: "web-1".to_owned(),
        ..PodObject::default()
    };
    pods.is(LOGS, at(1), &from_logs);
    let only_names = found(&mut pods, "u").unwrap();
    assert_eq!((&only_names.workload, &only_names.labels), (&None, &None));
    let id = ContainerId::new(&"3f".repeat(32)).unwrap();
    let from_api = PodObject {
        labels: Some(vec![("app".to_owned(), "web".to_owned())]),
        node: Some("worker-1".to_owned()),
        host_network: Some(false),
        service_account: Some("web".to_owned()),
        owner: SourceUpdate::By(ControllerRef {
            kind: "StatefulSet".to_owned(),
            name: "web".to_owned(),
            uid: "s".to_owned(),
        }),
        ips: vec![ip("10.1.0.5")],
        started: Some(at(0)),
        containers: vec![ContainerObject {
            name: "server".to_owned(),
            id: Some(id),
            ports: vec![("http".to_owned(), 8080)],
        }],
        ..from_logs.clone()
    };
    pods.is(API, at(2), &from_api);
    pods.is(LOGS, at(3), &from_logs);
    let all = found(&mut pods, "u").unwrap();
    assert_eq!(
        all.workload.as_ref().map(|workload| &*workload.kind),
        Some("StatefulSet")
    );
    assert_eq!(all.labels.as_ref().and_then(|labels| labels.get("app")), Some("web"));
    assert_eq!((all.node.as_deref(), all.host_network), (Some("worker-1"), Some(false)));
    let reference = pods.find("u").unwrap();
    assert_eq!(pods.container(reference, &id).as_deref(), Some("server"));
    assert!(pods.has_port(reference, "http", 8080) && !pods.has_port(reference, "http", 80));
    assert!(Arc::ptr_eq(&all, &found(&mut pods, "u").unwrap()), "made once");
    // The folder stays for a while, the pod does not.
    pods.gone(API, at(10), "u");
    assert_eq!(holder(&mut pods, "10.1.0.5", at(11)), None);
    assert_eq!(holder(&mut pods, "10.1.0.5", at(9)).as_deref(), Some("web-1"));
}

#[test]
fn a_static_pod_has_two_uids() {
    let hash = "0b6f14a38b14b6c0b0d7ef7a2a9c8d11";
    let mirror = |uid: &str| PodObject {
        uid: uid.to_owned(),
        static_uid: Some(hash.to_owned()),
        owner: SourceUpdate::By(ControllerRef {
            kind: "Node".to_owned(),
            name: "worker-1".to_owned(),
            uid: "n".to_owned(),
        }),
        ..pod("etcd-worker-1", &["10.0.0.1"], 1)
    };
    let own = PodObject {
        uid: hash.to_owned(),
        static_uid: Some(hash.to_owned()),
        owner: SourceUpdate::Nobody,
        ..pod("etcd-worker-1", &["10.0.0.1"], 1)
    };
    let [first, second] = [
        "0d7c5fbe-11a2-4c3b-8f0e-0123456789ab",
        "1d7c5fbe-11a2-4c3b-8f0e-0123456789ab",
    ];
    for kubelet_first in [true, false] {
        let mut pods = Pods::default();
        if kubelet_first {
            pods.is(KUBELET, at(2), &own);
        }
        pods.is(API, at(3), &mirror(first));
        if !kubelet_first {
            pods.is(KUBELET, at(4), &own);
        }
        let [by_hash, by_uid] = [hash, first].map(|uid| found(&mut pods, uid).unwrap());
        assert!(Arc::ptr_eq(&by_hash, &by_uid));
        assert_eq!(&*by_uid.uid, first, "as kubectl shows it");
        assert_eq!(by_uid.workload.as_ref().map(|workload| &*workload.kind), Some("Pod"));
        // Its mirror was deleted, and made again.
        pods.is(API, at(5), &mirror(second));
        pods.gone(API, at(6), first);
        assert_eq!(found(&mut pods, first), None);
        assert_eq!(&*found(&mut pods, hash).unwrap().uid, second);
        assert_eq!(holder(&mut pods, "10.0.0.1", at(7)).as_deref(), Some("etcd-worker-1"));
    }
}

#[test]
fn a_workload_comes_when_its_controller_is_told() {
    let mut pods = Pods::default();
    let facts = PodObject {
        owner: SourceUpdate::By(ControllerRef {
            kind: "ReplicaSet".to_owned(),
            name: "web-1".to_owned(),
            uid: "set".to_owned(),
        }),
        ..pod("a", &[], 1)
    };
    pods.is(API, at(2), &facts);
    let kind = |pods: &mut Pods| found(pods, "a").and_then(|pod| Some(pod.workload.as_ref()?.kind.to_string()));
    assert_eq!(kind(&mut pods).as_deref(), Some("ReplicaSet"));
    pods.controller_is(
        API,
        &ControllerObject {
            kind: crate::names::update::Kind::ReplicaSets,
            namespace: String::new(),
            uid: "set".to_owned(),
            owner: Some(ControllerRef {
                kind: "Deployment".to_owned(),
                name: "web".to_owned(),
                uid: "top".to_owned(),
            }),
        },
    );
    assert_eq!(kind(&mut pods).as_deref(), Some("Deployment"));
}

#[test]
fn what_the_kernel_shows_outweighs_late_news() {
    const X: &str = "10.1.0.5";
    let mut pods = after(vec![Is(110, pod("a", &[X], 100))]);
    // Nobody has told of b yet, nor that a has gone.
    pods.observed(ip(X), "b", at(130));
    assert_eq!(holder(&mut pods, X, at(125)).as_deref(), Some("a"));
    assert_eq!(holder(&mut pods, X, at(129)), None, "b may have had it already");
    assert_eq!(holder(&mut pods, X, at(130)), None, "somebody without a name");
    pods.is(API, at(140), &pod("b", &[X], 125));
    assert_eq!(holder(&mut pods, X, at(131)).as_deref(), Some("b"));
    assert_eq!(holder(&mut pods, X, at(120)).as_deref(), Some("a"));
    // Nobody speaks of such an address: it is none of the cluster's.
    pods.observed(ip("172.17.0.2"), "b", at(150));
    assert_eq!(holder(&mut pods, "172.17.0.2", at(160)), None);
    // Those on the node's own address show nothing.
    let host = PodObject {
        host_network: Some(true),
        ..pod("host", &[], 1)
    };
    pods.is(API, at(150), &host);
    pods.observed(ip(X), "host", at(151));
    assert_eq!(holder(&mut pods, X, at(152)).as_deref(), Some("b"));
}

#[test]
fn what_is_gone_is_remembered_for_a_while_and_bounded() {
    let mut pods = after(vec![Is(10, pod("a", &["10.1.0.5"], 1)), Gone(20, "a")]);
    assert!(found(&mut pods, "a").is_some());
    pods.gone(API, at(20 + 31 * 60), "nothing");
    assert!(found(&mut pods, "a").is_none());
    assert_eq!(pods.tenures.sizes()[1..], [0, 0]);
    for number in 0..MOST_REMEMBERED as i64 + 5000 {
        let name = format!("pod-{number}");
        pods.is(
            API,
            at(10_000),
            &pod(&name, &[&format!("10.1.{}.{}", number % 199, number % 211)], 9_000),
        );
        pods.gone(API, at(10_001), &name);
        let [tenures, uids, _] = pods.tenures.sizes();
        assert!(
            tenures <= MOST_REMEMBERED + 2 && uids <= MOST_REMEMBERED + 1,
            "{tenures} {uids}"
        );
    }
}

#[test]
fn documents_without_names_or_with_hostile_ones_do_no_harm() {
    let mut pods = Pods::default();
    pods.is(API, at(1), &PodObject::default());
    assert!(found(&mut pods, "").is_none());
    let odd = PodObject {
        uid: "\"\n\u{202e}".to_owned(),
        static_uid: Some("\"\n\u{202e}".to_owned()),
        name: "a,b=c".to_owned(),
        ips: vec![ip("10.1.0.5"); 1000],
        started: Some(WallTime(i64::MIN)),
        ..PodObject::default()
    };
    pods.is(API, WallTime(i64::MAX), &odd);
    pods.is(API, WallTime(i64::MIN), &odd);
    assert_eq!(&*found(&mut pods, &odd.uid).unwrap().name, "a,b=c");
    pods.gone(API, WallTime(i64::MIN), &odd.uid);
}

/// Pods come and go on few addresses, an address' next holder within a second of the last, and sources tell of it late, in
/// any order and in part. Whoever is named was there.
#[test]
fn a_reused_address_never_has_the_wrong_name() {
    const MS: i64 = 1_000_000;
    let mut next = random(11);
    let mut below = |limit: i64| (next() % limit as u64) as i64;
    let (mut named, mut asked) = (0, 0);
    for round in 0..200 {
        // (uid, started, has the address from, until, seen running, told gone), in ms.
        let mut lives = Vec::new();
        let mut now = 10_000 + below(5_000);
        for number in 0..50 {
            let from = now + 1 + below(1_000);
            let started = from - 1 - below(800);
            let until = from + 200 + below(8_000);
            let seen = from + below(1_500);
            let gone = until + below(1_500);
            lives.push((format!("{round}-{number}"), started, from, until, seen, gone));
            now = until;
        }
        let mut news: Vec<(i64, usize, bool)> = Vec::new();
        for (number, &(_, _, _, until, seen, gone)) in lives.iter().enumerate() {
            // One that was short may never be seen to run.
            if seen < until {
                news.push((seen, number, true));
            }
            news.push((gone, number, false));
        }
        news.sort_unstable();
        // Connections, each asked about when it closes, with what is known then.
        let mut asks: Vec<(i64, i64)> = (0..100)
            .map(|_| {
                let start = 10_000 + below(now - 10_000);
                (start + 2_500 + below(3_000), start)
            })
            .collect();
        asks.sort_unstable();
        let mut pods = Pods::default();
        let mut news = news.into_iter().peekable();
        for (close, start) in asks {
            while let Some((time, number, is_there)) = news.next_if(|(time, ..)| *time <= close) {
                let (uid, started, ..) = &lives[number];
                // The API has whole seconds.
                let facts = pod(uid, &["10.1.0.5"], started / 1_000);
                if is_there {
                    pods.is(API, WallTime(time * MS), &facts);
                } else {
                    pods.is(API, WallTime(time * MS), &over(facts));
                    pods.gone(API, WallTime(time * MS), uid);
                }
            }
            let truth = lives
                .iter()
                .find(|(_, _, from, until, ..)| (*from..*until).contains(&start));
            if let Some((truth, ..)) = truth {
                asked += 1;
                if let Some(name) = holder(&mut pods, "10.1.0.5", WallTime(start * MS)) {
                    assert_eq!(name, *truth, "round {round}, start {start}");
                    named += 1;
                }
            }
        }
    }
    assert!(asked > 10_000 && named * 2 > asked, "{named} of {asked}");
}

#[test]
fn only_so_many_are_kept_as_records_have_them() {
    let mut pods = Pods::default();
    let count = MOST_MADE + 10;
    for number in 0..count {
        pods.is(API, at(1), &pod(&format!("web-{number}"), &[], 1));
    }
    let all = |pods: &mut Pods| -> Vec<Arc<Pod>> {
        (0..count)
            .map(|number| found(pods, &format!("web-{number}")).unwrap())
            .collect()
    };
    let (first, again) = (all(&mut pods), all(&mut pods));
    assert_eq!(first, again);
    assert_eq!(pods.made.len(), MOST_MADE);
    let kept = (0..count)
        .filter(|&slot| pods.tenures.get(slot as u32).unwrap().is_made())
        .count();
    assert_eq!(kept, MOST_MADE);
}
