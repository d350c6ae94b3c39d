//! Tests of groups, and of the sums that a group has.

use super::*;

#[test]
fn failures_are_counted_by_outcome() {
    let windows = all(&[
        failed(1, 1.0, Outcome::Refused),
        failed(2, 1.0, Outcome::ConnectTimeout),
        failed(3, 1.0, Outcome::ConnectTimeout),
        record(4, Event::Close, 1.0, 1),
    ]);
    let sums = &windows[0].rows[0].sums;
    assert_eq!((sums.closed, sums.failed(), sums.opened), (4, 3, 1));
    assert_eq!(sums.main_failure(), Some(EndOutcomes::Same(Outcome::ConnectTimeout)));
    let by_outcome: Vec<_> = sums.by_outcome().collect();
    assert_eq!(
        by_outcome,
        [(Outcome::Ok, 1), (Outcome::Refused, 1), (Outcome::ConnectTimeout, 2)]
            .map(|(outcome, count)| (EndOutcomes::Same(outcome), count))
    );
    assert_eq!(sums.connects.summary().map(|summary| summary.max), Some(1_000_000));
}

#[test]
fn groups_beyond_the_maximum_count_in_other() {
    let mut rollup = Run::new(RollupSettings {
        max_groups: 3,
        ..settings(&[Key::Connection])
    });
    let mut records: Vec<_> = (1..=10)
        .map(|cookie| record(cookie, Event::Update, 1.0, cookie))
        .collect();
    records.extend((1..=10).map(|cookie| record(cookie, Event::Close, 6.0, cookie + 1)));
    let windows = windows(&mut rollup, &records);
    assert_eq!(windows.len(), 2);
    for (window, sent) in windows.iter().zip([55, 10]) {
        assert_eq!(window.rows.len(), 4);
        let other = &window.rows[3];
        assert!(other.group.is_other());
        assert!(window.rows[..3].iter().all(|row| !row.group.is_other()));
        let all: u64 = window.rows.iter().map(|row| row.sums.sent_bytes).sum();
        assert_eq!(all, sent);
    }
    assert_eq!(windows[0].rows[3].sums.open, 7);
}

#[test]
fn group_has_only_the_grouped_facts() {
    use crate::output::testing::{example, from_a_node, in_pods};
    let show = |keys: &[Key], record: &Record| {
        let place = |place: &GroupEnd| {
            let workload = place.workload.as_ref().map(|workload| Arc::clone(&workload.name));
            let parts = [place.namespace.clone(), workload, place.pod.clone(), place.node.clone()];
            let mut parts: Vec<_> = parts.into_iter().flatten().map(|part| part.to_string()).collect();
            parts.extend(place.ip.map(|ip| ip.to_string()));
            parts.extend(place.port.map(|port| format!(":{port}")));
            parts.join(" ")
        };
        let group = By::new(keys).group(record);
        assert_eq!(group.direction, Some(record.direction));
        let mut text = format!("{} > {}", place(&group.src), place(&group.dst));
        if let Some(service) = group.service {
            text += &format!(
                " service {}",
                service.map_or("-".into(), |service| service.name.to_string())
            );
        }
        if let Some(comm) = group.process {
            text += &format!(" process {}", comm.is_some());
        }
        if let Some(pid) = group.pid {
            text += &format!(" pid {pid:?}");
        }
        if let Some(outcome) = group.outcome {
            text += &format!(" outcome {outcome:?}");
        }
        if let Some(id) = group.id {
            text += &format!(" id {id}");
        }
        text
    };
    let cases = [
        (
            &[Key::Workload][..],
            in_pods(),
            "istio-system prometheus-5fb7f6f8d8-h9cts > echo-1-27855 productpage-v1",
        ),
        (&[Key::Workload], from_a_node(), "worker-2 > 10.244.0.13"),
        (&[Key::Workload], example(), "10.244.0.17 > 10.244.0.13"),
        (
            &[Key::Pod],
            in_pods(),
            "istio-system prometheus-5fb7f6f8d8-h9cts > echo-1-27855 productpage-v1-8499c849b9-bz9t9",
        ),
        (&[Key::Pod], from_a_node(), "worker-2 > 10.244.0.13"),
        (&[Key::Service], in_pods(), " >  service productpage"),
        (&[Key::Service], example(), " > 10.244.0.13 service -"),
        (&[Key::Namespace], in_pods(), "istio-system > echo-1-27855"),
        (&[Key::Namespace], example(), " > "),
        (&[Key::Node], in_pods(), "worker-1 > worker-1"),
        (&[Key::Node], from_a_node(), "worker-2 > worker-1"),
        (&[Key::Process], example(), " >  process true"),
        (&[Key::Process], testing::refused(), " >  process false"),
        (&[Key::Pid], example(), " >  pid Some(4711)"),
        (&[Key::Pid], testing::refused(), " >  pid None"),
        (&[Key::Ip], in_pods(), "10.244.0.17 > 10.244.0.13"),
        (&[Key::Port], in_pods(), " > :9080"),
        (&[Key::Outcome], testing::refused(), " >  outcome Some(Same(Refused))"),
        (&[Key::Outcome], record(1, Event::Update, 0.0, 0), " >  outcome None"),
        (
            &[Key::Connection],
            example(),
            "10.244.0.17 :51842 > 10.244.0.13 :9080 id 5f2c81-1",
        ),
        (
            &[Key::Namespace, Key::Port],
            in_pods(),
            "istio-system > echo-1-27855 :9080",
        ),
        (
            &[Key::Workload, Key::Ip],
            in_pods(),
            "istio-system prometheus-5fb7f6f8d8-h9cts 10.244.0.17 > echo-1-27855 productpage-v1 10.244.0.13",
        ),
    ];
    for (keys, record, expected) in cases {
        assert_eq!(show(keys, &record), expected, "{keys:?}");
    }
}

/// Many short connections of one group leave capacity for those of another group, and for open connections.
#[test]
fn connections_of_every_group_are_listed() {
    let mut rollup = Run::of(Rollup::new(settings(&[Key::Port])).with_connections(1000));
    let at_port = |mut record: Record, port| {
        record.dst.set_port(port);
        record
    };
    for cookie in 0..5000 {
        rollup.take(&at_port(record(cookie, Event::Close, 1.0, 1), 80));
    }
    rollup.take(&at_port(record(6000, Event::Close, 2.0, 1), 81));
    rollup.take(&at_port(record(6001, Event::Update, 2.0, 1), 80));
    let window = rollup.watermark(WallTime(5 * SECOND)).unwrap();
    let listed: Vec<_> = window.rows.iter().map(|row| row.listed).collect();
    assert_eq!(listed, [101, 1]);
    assert_eq!(window.connections.len(), 102);
    for (row, listed) in window.rows.iter().zip(listed) {
        let of_row = window
            .connections
            .iter()
            .filter(|one| one.parent.as_ref() == Some(&row.group));
        assert_eq!(of_row.count() as u32, listed);
    }
    assert_eq!(window.connections.iter().map(|row| row.sums.open).sum::<u64>(), 1);
}

#[test]
fn last_failure_is_the_latest_one() {
    let windows = all(&[
        failed(1, 1.0, Outcome::Refused),
        failed(2, 2.0, Outcome::ConnectTimeout),
        record(3, Event::Close, 3.0, 0),
        record(4, Event::Close, 6.0, 0),
    ]);
    let failures: Vec<_> = windows.iter().map(|window| window.rows[0].last_failure).collect();
    let expected = Failure {
        time: WallTime(2 * SECOND),
        outcomes: EndOutcomes::Same(Outcome::ConnectTimeout),
    };
    assert_eq!(failures, [Some(expected), None]);
}

#[test]
fn totals_are_the_sums_of_all_windows() {
    let records = traffic(12, 800);
    let by = [Key::Port, Key::Outcome];
    let mut totals = Totals::new(1000);
    for window in windows(&mut Run::new(settings(&by)), &records) {
        totals.add(&window);
    }
    let mut whole = Run::new(RollupSettings {
        interval: None,
        ..settings(&by)
    });
    let expected = windows(&mut whole, &records).remove(0);
    let mut rows = totals.rows().to_vec();
    rows.sort_by(|one, two| one.group.cmp(&two.group));
    assert_eq!(rows.len(), expected.rows.len());
    for (row, expected) in rows.iter().zip(&expected.rows) {
        assert_eq!(format!("{row:?}"), format!("{expected:?}"));
    }
}

#[test]
fn totals_beyond_the_maximum_count_in_other() {
    let records: Vec<_> = (1..=10)
        .map(|cookie| record(cookie, Event::Close, f64::from(cookie as u32), 1))
        .collect();
    let mut totals = Totals::new(3);
    for window in windows(&mut Run::new(settings(&[Key::Connection])), &records) {
        totals.add(&window);
    }
    assert_eq!(totals.rows().len(), 4);
    let other = totals.rows().iter().find(|row| row.group.is_other()).unwrap();
    assert_eq!(other.sums.closed, 7);
}
