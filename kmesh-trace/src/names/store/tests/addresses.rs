//! Which pod had an address at a time.

use super::*;
use crate::output::testing::random;

/// What a source reports. Times in seconds.
#[expect(clippy::large_enum_variant, reason = "a few in a table")]
enum Step {
    Reports(i64, PodObject),
    Deletes(i64, &'static str),
    /// A complete list of the kubelet.
    Lists(i64, Vec<PodObject>),
}
use Step::{Deletes, Lists, Reports};

fn after(steps: Vec<Step>) -> Store {
    let mut store = Store::default();
    for step in steps {
        match step {
            Reports(time, pod) => report(&mut store, API, time, Object::Pod(pod)),
            Deletes(time, uid) => apply(&mut store, API, time, Change::Delete(Key::Pod(uid.to_owned()))),
            Lists(time, pods) => list(&mut store, KUBELET, time, pods),
        }
    }
    store
}

fn terminal(pod: PodObject) -> PodObject {
    PodObject { terminal: true, ..pod }
}

fn on_host(pod: PodObject) -> PodObject {
    PodObject {
        host_network: Some(true),
        ..pod
    }
}

#[test]
fn address_names_the_only_pod_that_may_have_had_it() {
    const X: &str = "10.1.0.5";
    let a = || pod("a", &[X], 100);
    let b = || pod("b", &[X], 200);
    let unsure = || PodObject {
        host_network: None,
        ..a()
    };
    type Case = (&'static str, Vec<Step>, &'static [(i64, Option<&'static str>)]);
    let cases: Vec<Case> = vec![
        (
            "from its start on, though it was reported later",
            vec![Reports(150, a())],
            &[(99, None), (100, Some("a")), (150, Some("a")), (1000, Some("a"))],
        ),
        (
            "one pod after the other",
            vec![Reports(110, a()), Deletes(180, "a"), Reports(205, b())],
            &[
                (120, Some("a")),
                (179, Some("a")),
                (181, None),
                (201, Some("b")),
                (300, Some("b")),
            ],
        ),
        (
            "a list that was requested before the first went comes after the second",
            vec![
                Reports(110, a()),
                Deletes(180, "a"),
                Reports(205, b()),
                Reports(179, a()),
            ],
            &[(120, Some("a")), (181, None), (300, Some("b"))],
        ),
        (
            "the first is reported gone after the second has come",
            vec![Reports(110, a()), Reports(205, b()), Deletes(210, "a")],
            &[
                (120, Some("a")),
                (197, Some("a")),
                (203, None),
                (209, None),
                (210, Some("b")),
            ],
        ),
        (
            "two listed pods have one address",
            vec![Reports(110, a()), Reports(205, b())],
            &[(120, Some("a")), (203, None), (206, None), (1000, None)],
        ),
        (
            "a terminal pod that stays listed",
            vec![
                Reports(110, a()),
                Reports(180, terminal(a())),
                Reports(190, terminal(a())),
                Reports(205, b()),
            ],
            &[(120, Some("a")), (181, None), (203, Some("b"))],
        ),
        (
            "a pod that was terminal when it was first reported may have had the address before",
            vec![Reports(110, a()), Reports(230, terminal(b()))],
            &[(120, Some("a")), (210, None), (240, Some("a"))],
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
            "absent from one source's list while another reports it",
            vec![Reports(100, a()), Lists(110, vec![a()]), Lists(150, vec![])],
            &[(151, Some("a"))],
        ),
        (
            "reported by both, and gone from both",
            vec![
                Lists(110, vec![a()]),
                Reports(120, a()),
                Lists(150, vec![]),
                Deletes(160, "a"),
            ],
            &[(155, Some("a")), (161, None)],
        ),
        (
            "another address",
            vec![
                Reports(110, a()),
                Reports(180, pod("a", &["10.1.0.6"], 100)),
                Reports(205, b()),
            ],
            &[(120, Some("a")), (179, Some("a")), (181, None), (206, Some("b"))],
        ),
        (
            "an old report changes nothing",
            vec![
                Reports(110, a()),
                Reports(180, pod("a", &["10.1.0.6"], 100)),
                Reports(150, a()),
            ],
            &[(120, Some("a")), (181, None)],
        ),
        (
            "a pod on the host's network",
            vec![Reports(110, on_host(a()))],
            &[(120, None)],
        ),
        (
            "a pod on the host's network, first reported by a source that does not know",
            vec![Reports(110, unsure()), Lists(115, vec![on_host(a())])],
            &[(112, None), (120, None)],
        ),
        (
            "a start in the future, by another node's clock",
            vec![Reports(110, a()), Deletes(150, "a"), Reports(199, b())],
            &[(198, None), (199, Some("b")), (201, Some("b"))],
        ),
    ];
    for (what, steps, expected) in cases {
        let mut store = after(steps);
        for (time, name) in expected {
            assert_eq!(holder(&mut store, X, at(*time)).as_deref(), *name, "{what}, at {time}");
        }
    }
}

#[test]
fn every_address_of_a_pod_names_it() {
    let mut store = after(vec![
        Reports(10, pod("a", &["::ffff:10.1.0.5", "fd00::5"], 1)),
        Reports(10, pod("b", &["10.1.0.6"], 1)),
        Reports(11, pod("b", &["10.1.0.6", "fd00::6"], 1)),
        Reports(12, pod("b", &["fd00::6"], 1)),
        Reports(10, pod("c", &["127.0.0.1", "::", "224.0.0.1"], 1)),
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
        assert_eq!(holder(&mut store, address, at(20)).as_deref(), name, "{address}");
    }
}

#[test]
fn list_of_one_node_changes_no_other_node() {
    let on = |name: &str, address: &str, node: &str| PodObject {
        node: Some(node.to_owned()),
        ..pod(name, &[address], 1)
    };
    let mut store = after(vec![
        Reports(10, on("gone", "10.1.0.1", "here")),
        Reports(10, on("stays", "10.1.0.2", "here")),
        Reports(10, on("elsewhere", "10.1.0.3", "there")),
        // By a watch, after the request of the list.
        Reports(21, on("new", "10.1.0.4", "here")),
    ]);
    let scope = || Scope::PodsOfNode("here".to_owned());
    apply(&mut store, API, 20, Change::ListStart(scope()));
    report(&mut store, API, 20, Object::Pod(on("stays", "10.1.0.2", "here")));
    apply(&mut store, API, 20, Change::ListEnd(scope()));
    for (address, name) in [
        ("10.1.0.1", None),
        ("10.1.0.2", Some("stays")),
        ("10.1.0.3", Some("elsewhere")),
        ("10.1.0.4", Some("new")),
    ] {
        assert_eq!(holder(&mut store, address, at(30)).as_deref(), name, "{address}");
    }
    assert_eq!(store.pods(), 3);
}

/// Pods follow each other on one address, the next within a second of the last. A source reports them late, in any
/// order and in part. A pod that is named had the address.
#[test]
fn reused_address_never_has_the_wrong_name() {
    const MS: i64 = 1_000_000;
    let mut next = random(11);
    let mut below = |limit: i64| (next() % limit as u64) as i64;
    let (mut named, mut asked) = (0, 0);
    for round in 0..200 {
        // (uid, started, has the address from, until, reported running, reported gone), in ms.
        let mut lives = Vec::new();
        let mut now = 10_000 + below(5_000);
        for number in 0..50 {
            let from = now + 1 + below(1_000);
            let started = from - 1 - below(800);
            let until = from + 2_000 + below(20_000);
            let seen = from + below(1_500);
            let gone = until + below(1_500);
            lives.push((format!("{round}-{number}"), started, from, until, seen, gone));
            now = until;
        }
        let mut reports: Vec<(i64, usize, bool)> = Vec::new();
        for (number, &(.., seen, gone)) in lives.iter().enumerate() {
            reports.extend([(seen, number, true), (gone, number, false)]);
        }
        reports.sort_unstable();
        // Connections, each looked up when it closes, with what is known then.
        let mut lookups: Vec<(i64, i64)> = (0..100)
            .map(|_| {
                let start = 10_000 + below(now - 10_000);
                (start + 2_500 + below(3_000), start)
            })
            .collect();
        lookups.sort_unstable();
        let mut store = Store::default();
        let mut reports = reports.into_iter().peekable();
        for (close, start) in lookups {
            while let Some((time, number, is_there)) = reports.next_if(|(time, ..)| *time <= close) {
                let (uid, started, ..) = &lives[number];
                // The API has whole seconds.
                let pod = pod(uid, &["10.1.0.5"], started / 1_000);
                let changes = match is_there {
                    true => vec![Change::Upsert(Object::Pod(pod))],
                    false => vec![
                        Change::Upsert(Object::Pod(terminal(pod))),
                        Change::Delete(Key::Pod(uid.clone())),
                    ],
                };
                for change in changes {
                    store.apply(&SourceUpdate {
                        source: API,
                        at: WallTime(time * MS),
                        change,
                    });
                }
            }
            let truth = lives
                .iter()
                .find(|(_, _, from, until, ..)| (*from..*until).contains(&start));
            if let Some((truth, ..)) = truth {
                asked += 1;
                if let Some(name) = holder(&mut store, "10.1.0.5", WallTime(start * MS)) {
                    assert_eq!(name, *truth, "round {round}, start {start}");
                    named += 1;
                }
            }
        }
    }
    assert!(asked > 10_000 && named * 2 > asked, "{named} of {asked}");
}
