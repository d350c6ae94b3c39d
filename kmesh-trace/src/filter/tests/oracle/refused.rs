//! What is refused as impossible is just what none of all records passes.

use super::*;

/// One record for each way in which records can differ for these flags: then a filter is refused exactly when none of
/// them passes.
fn refuses_exactly(flags: &[&'static str], all: &[Record], events: &[Event], seed: u64) {
    let told: Vec<_> = all
        .iter()
        .filter(|record| events.contains(&record.event))
        .cloned()
        .collect();
    let mut dice = Dice(random(seed));
    let (mut refused, mut accepted) = (0, 0);
    for _ in 0..1000 {
        let arguments = dice.arguments(flags);
        if is_both(&arguments) {
            continue;
        }
        let contradiction = parsed(&arguments).contradiction(events);
        let is_possible = told.iter().any(|record| passes(&arguments, record));
        assert_eq!(contradiction.is_none(), is_possible, "{arguments:?} {contradiction:?}");
        let Some(contradiction) = contradiction else {
            accepted += 1;
            continue;
        };
        refused += 1;
        // Each flag that is blamed is to blame, and together they suffice.
        let possible_with = |is_in: &dyn Fn(&str) -> bool| {
            let arguments: Vec<_> = arguments.iter().filter(|(flag, _)| is_in(flag)).cloned().collect();
            let has_closes = events.contains(&Event::Close);
            let records = if has_closes || is_in("--events") { &told } else { all };
            records.iter().any(|record| passes(&arguments, record))
        };
        let blamed = &contradiction.flags;
        assert!(
            !possible_with(&|flag| blamed.contains(&flag)),
            "{arguments:?} {blamed:?}"
        );
        for one in blamed {
            let rest = |flag: &str| blamed.contains(&flag) && flag != *one;
            assert!(possible_with(&rest), "{arguments:?} {blamed:?} without {one}");
        }
    }
    assert!(refused > 50 && accepted > 200, "{refused} {accepted}");
}

#[test]
fn what_no_port_passes_is_refused() {
    let edges = PORTS
        .iter()
        .flat_map(|port| [port.saturating_sub(1), *port, port.saturating_add(1)]);
    let edges: Vec<_> = edges.collect();
    let mut records = Vec::new();
    for &from in &edges {
        for &to in &edges {
            let mut record = example();
            record.src.set_port(from);
            record.dst.set_port(to);
            records.push(record);
        }
    }
    refuses_exactly(&["--port", "--from-port", "--to-port"], &records, &[Event::Close], 2);
}

#[test]
fn what_no_address_passes_is_refused() {
    // Where a network begins and ends, and beside it: between two such addresses, all are alike.
    let mut edges = Vec::new();
    for network in NETWORKS {
        let Network(network) = network.parse().unwrap();
        match (network.network(), network.broadcast()) {
            (IpAddr::V4(first), IpAddr::V4(last)) => {
                let (first, last) = (first.to_bits(), last.to_bits());
                for edge in [first.saturating_sub(1), first, last, last.saturating_add(1)] {
                    edges.push(IpAddr::V4(edge.into()));
                }
            }
            (IpAddr::V6(first), IpAddr::V6(last)) => {
                let (first, last) = (first.to_bits(), last.to_bits());
                for edge in [first.saturating_sub(1), first, last, last.saturating_add(1)] {
                    edges.push(IpAddr::V6(edge.into()));
                }
            }
            _ => unreachable!("{network}"),
        }
    }
    edges.sort_unstable();
    edges.dedup();
    let mut records = Vec::new();
    for &from in &edges {
        for &to in edges.iter().filter(|to| to.is_ipv4() == from.is_ipv4()) {
            records.push(Record {
                family: if from.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 },
                src: SocketAddr::new(from, 1),
                dst: SocketAddr::new(to, 2),
                ..example()
            });
        }
    }
    refuses_exactly(
        &["--ip", "--from-ip", "--to-ip", "-4", "-6"],
        &records,
        &[Event::Close],
        3,
    );
}

/// Every end that there can be: what ends while connecting is the client's and has moved nothing.
#[test]
fn what_never_ends_so_is_refused() {
    const FLAGS: [&str; 5] = [
        "--direction",
        "--outcome",
        "--failed",
        "--established-only",
        "--min-bytes",
    ];
    let mut closes = Vec::new();
    let mut updates = Vec::new();
    for &direction in Direction::ALL {
        for established in [false, true] {
            for sent_bytes in [0, 5000] {
                let record = Record {
                    direction,
                    established,
                    sent_bytes,
                    received_bytes: 0,
                    ..example()
                };
                updates.push(Record {
                    event: Event::Update,
                    outcome: None,
                    ..record.clone()
                });
                let can_be = |outcome: Outcome| match outcome {
                    Outcome::Ok => established,
                    _ if is_attempt(outcome) => !established && direction == Direction::Outbound && sent_bytes == 0,
                    _ => true,
                };
                closes.extend(
                    Outcome::ALL
                        .iter()
                        .filter(|&&outcome| can_be(outcome))
                        .map(|&outcome| Record {
                            outcome: Some(outcome),
                            ..record.clone()
                        }),
                );
            }
        }
    }
    let all = [closes, updates].concat();
    refuses_exactly(&FLAGS, &all, &[Event::Close], 4);
    refuses_exactly(&FLAGS, &all, &[Event::Update], 5);
    refuses_exactly(&FLAGS, &all, Event::ALL, 6);
}

#[test]
fn a_pattern_covers_what_it_matches_all_of() {
    for covering in PATTERNS {
        for covered in PATTERNS {
            let [one, other] = [covering, covered].map(|text| text.parse::<NamePattern>().unwrap());
            // Of these letters and this length there is a witness for each of these patterns.
            let is_covered = words(5)
                .iter()
                .chain(&NAMES.map(|name| name.as_bytes().to_vec()))
                .filter(|word| name(covered.as_bytes(), word))
                .all(|word| name(covering.as_bytes(), word));
            assert_eq!(one.covers(&other), is_covered, "{covering} {covered}");
        }
    }
}

fn words(longest: usize) -> Vec<Vec<u8>> {
    let mut words = vec![Vec::new()];
    let mut last = words.clone();
    for _ in 0..longest {
        last = last
            .iter()
            .flat_map(|word| b"abnx".map(|letter| [&word[..], &[letter]].concat()))
            .collect();
        words.extend_from_slice(&last);
    }
    words
}

/// Two ends whose labels are all that these requirements can tell apart.
#[test]
fn what_no_labels_pass_is_refused() {
    let mut pods = Vec::new();
    for app in [None, Some("web"), Some("db"), Some("other")] {
        for n in [None, Some(""), Some("4"), Some("5"), Some("x")] {
            let labels = app.map(|app| ("app", app)).into_iter().chain(n.map(|n| ("n", n)));
            pods.push(Arc::new(Pod {
                labels: Some(labels.collect()),
                ..(*Dice(random(8)).any_pod()).clone()
            }));
        }
    }
    let mut records = Vec::new();
    for src in &pods {
        for dst in &pods {
            let mut record = example();
            record.names.src.pod = Some(Arc::clone(src));
            record.names.dst.pod = Some(Arc::clone(dst));
            records.push(record);
        }
    }
    let flags = ["--selector", "--from-selector", "--to-selector"];
    refuses_exactly(&flags, &records, &[Event::Close], 9);
}
