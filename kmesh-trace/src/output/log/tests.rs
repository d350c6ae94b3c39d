//! Tests of the access log.

use super::*;
use crate::output::testing;
use crate::record::PacketDirection;

const EXAMPLE: &str = "accesslog: 2024-09-14 08:19:26.552709932 +0000 UTC src.addr=10.244.0.17:51842, \
    src.workload=-, src.namespace=-, dst.addr=10.244.0.13:9080, dst.service=-, dst.workload=-, dst.namespace=-, \
    direction=INBOUND, sent_bytes=5, received_bytes=292, duration=2.733902ms, \
    start_time=2024-09-14T08:19:26.549976030Z, state=LAST_ACK, retransmissions=0, packet_loss=0, srtt=120us, \
    min_rtt=98us, outcome=ok, closed_by=peer, errno=-, established=true, connect=-, undelivered_bytes=0, \
    process=python3/4711, preexisting=false, reset_reason=-, drops=-\n";

fn render(color: bool, record: &Record) -> String {
    printed(color, |log| log.record(record, &Delta::default()))
}

fn printed(color: bool, print: impl FnOnce(&mut Log) -> io::Result<()>) -> String {
    let out = testing::Shared::default();
    let mut log = Log::new(testing::ALL_EVENTS, color, TimeFormat::Utc, Stdout::to(out.clone()));
    print(&mut log).unwrap();
    log.flush().unwrap();
    out.text()
}

/// Parses a line into fields, as a reader of the contract would: a value may be a JSON string.
fn fields(line: &str) -> Vec<(String, String)> {
    let mut rest = line.strip_prefix("accesslog: ").unwrap();
    let mut fields = Vec::new();
    let time = rest.match_indices(' ').nth(3).unwrap().0;
    fields.push(("time".to_owned(), rest[..time].to_owned()));
    rest = rest[time + 1..].strip_suffix('\n').unwrap();
    loop {
        let (key, after) = rest.split_once('=').unwrap();
        let (value, after) = if after.starts_with('"') {
            let mut values = serde_json::Deserializer::from_str(after).into_iter::<String>();
            let value = values.next().unwrap().unwrap();
            (value, &after[values.byte_offset()..])
        } else {
            let end = after.find(", ").unwrap_or(after.len());
            (after[..end].to_owned(), &after[end..])
        };
        fields.push((key.to_owned(), value));
        match after.strip_prefix(", ") {
            Some(more) => rest = more,
            None => break assert_eq!(after, ""),
        }
    }
    fields
}

#[test]
fn example_record_prints_the_documented_line() {
    assert_eq!(render(false, &testing::example()), EXAMPLE);
}

#[test]
fn names_stand_in_kmesh_fields() {
    let line = render(false, &testing::in_pods());
    // A line that Kmesh printed.
    let expected = "accesslog: 2024-09-14 08:19:26.552709932 +0000 UTC src.addr=10.244.0.17:51842, \
         src.workload=prometheus-5fb7f6f8d8-h9cts, src.namespace=istio-system, dst.addr=10.244.0.13:9080, \
         dst.service=productpage.echo-1-27855.svc.cluster.local, dst.workload=productpage-v1-8499c849b9-bz9t9, \
         dst.namespace=echo-1-27855, direction=INBOUND, sent_bytes=5, received_bytes=292, duration=2.733902ms, ";
    assert!(line.starts_with(expected), "{line}");
}

#[test]
fn hostile_pod_name_cannot_forge_a_field() {
    let mut record = testing::in_pods();
    for name in ["x, dst.service=forged", "-", "", "a\x1b[2J", "a\nb"] {
        let pod = record.names.src.pod.as_deref().cloned().unwrap();
        let pod = crate::record::Pod {
            name: name.into(),
            ..pod
        };
        record.names.src.pod = Some(std::sync::Arc::new(pod));
        let line = render(false, &record);
        assert!(line.contains("src.workload=\""), "{line}");
        let fields = fields(&line);
        let value = &fields.iter().find(|(key, _)| key == "src.workload").unwrap().1;
        assert_eq!(value, name);
    }
}

#[test]
fn refused_attempt_prints_the_documented_line() {
    let expected = "accesslog: 2024-09-14 08:19:26.552709932 +0000 UTC src.addr=[fd00::1]:40000, src.workload=-, \
        src.namespace=-, dst.addr=[2001:db8::2]:443, dst.service=-, dst.workload=-, dst.namespace=-, \
        direction=OUTBOUND, sent_bytes=0, received_bytes=0, duration=2.733902ms, \
        start_time=2024-09-14T08:19:26.549976030Z, state=SYN_SENT, retransmissions=0, packet_loss=0, srtt=-, \
        min_rtt=-, outcome=refused, closed_by=peer, errno=ECONNREFUSED, established=false, connect=-, \
        undelivered_bytes=0, process=-, preexisting=false, reset_reason=-, drops=-\n";
    assert_eq!(render(false, &testing::refused()), expected);
}

#[test]
fn fields_have_their_values() {
    let mut lossy = testing::example();
    (lossy.tcp.lost, lossy.tcp.lost_out, lossy.tcp.total_retrans) = (7, 1, 9);
    (lossy.undelivered_bytes, lossy.connect_ns) = (1 << 40, Some(182_331));
    let mut scoped = testing::refused();
    scoped.src = std::net::SocketAddrV6::new("fe80::1".parse().unwrap(), 1, 0, 3).into();
    let cases = [
        ("cumulative loss", lossy.clone(), "packet_loss", "7"),
        ("retransmissions", lossy.clone(), "retransmissions", "9"),
        ("undelivered", lossy.clone(), "undelivered_bytes", "1099511627776"),
        ("connect in milliseconds", lossy, "connect", "0.182331ms"),
        ("no interface in addresses", scoped, "src.addr", "[fe80::1]:1"),
        ("observed duration", testing::preexisting(), "duration", "5000ms"),
        ("preexisting", testing::preexisting(), "preexisting", "true"),
        ("no start", testing::preexisting(), "start_time", "-"),
        ("no state", testing::preexisting(), "state", "-"),
        ("closed by neither", testing::preexisting(), "closed_by", "-"),
        (
            "the largest duration",
            testing::largest(),
            "duration",
            "18446744073709.551615ms",
        ),
        (
            "the largest address",
            testing::largest(),
            "src.addr",
            "255.255.255.255:65535",
        ),
        ("an errno without a name", testing::largest(), "errno", "E4294967295"),
        (
            "a name of 16 bytes",
            testing::largest(),
            "process",
            "zzzzzzzzzzzzzzzz/4294967295",
        ),
    ];
    for (name, record, key, expected) in cases {
        let line = render(false, &record);
        let value = fields(&line).into_iter().find(|field| field.0 == key).unwrap().1;
        assert_eq!(value, expected, "{name}");
    }
}

#[test]
fn duration_is_milliseconds_without_trailing_zeros() {
    let cases = [
        (0, "0ms"),
        (1, "0.000001ms"),
        (1_000, "0.001ms"),
        (100_000, "0.1ms"),
        (120_300, "0.1203ms"),
        (999_999, "0.999999ms"),
        (1_000_000, "1ms"),
        (1_000_010, "1.00001ms"),
        (10_500_000, "10.5ms"),
        (2_733_902, "2.733902ms"),
        (86_400_000_000_000, "86400000ms"),
    ];
    for (nanoseconds, text) in cases {
        let mut line = Vec::new();
        Line(&mut line).milliseconds(nanoseconds);
        assert_eq!(String::from_utf8(line).unwrap(), text);
    }
}

#[test]
fn process_name_is_quoted_unless_plain() {
    let cases: [(&str, &[u8], &str); 12] = [
        ("plain", b"python3", "process=python3/4711,"),
        ("all plain characters", b"A.z_0:/[]@-", "process=A.z_0:/[]@-/4711,"),
        ("empty", b"", "process=/4711,"),
        ("a space", b"tmux: server", r#"process="tmux: server/4711","#),
        ("a comma", b"a,b", r#"process="a,b/4711","#),
        ("a forged field", b"x, errno=EIO", r#"process="x, errno=EIO/4711","#),
        ("a quote", br#"a"b"#, r#"process="a\"b/4711","#),
        ("parentheses", b"(sd-pam)", r#"process="(sd-pam)/4711","#),
        ("a line feed", b"a\nb", r#"process="a\u000ab/4711","#),
        (
            "an escape sequence",
            b"\x1b[2J\x7f",
            r#"process="\u001b[2J\u007f/4711","#,
        ),
        ("a non-ASCII letter", "naïve".as_bytes(), r#"process="naïve/4711","#),
        ("invalid UTF-8", b"a\xff", "process=\"a\u{fffd}/4711\","),
    ];
    for (name, comm, expected) in cases {
        let line = render(false, &testing::named(comm));
        assert!(line.contains(&format!(", {expected}")), "{name}: {line}");
    }
}

#[test]
fn hostile_process_name_cannot_forge_a_field() {
    let plain = fields(EXAMPLE);
    assert_eq!(plain.len(), 28);
    for name in testing::hostile_names() {
        let line = render(false, &testing::named(&name));
        assert!(testing::is_harmless(&line), "{line:?}");
        assert_eq!(line.find('\n'), Some(line.len() - 1));
        for (field, expected) in fields(&line).iter().zip(&plain) {
            if field.0 == "process" {
                assert_eq!(
                    field.1.rsplit_once('/').unwrap(),
                    (&*String::from_utf8_lossy(&name), "4711")
                );
            } else {
                assert_eq!(field, expected, "{line:?}");
            }
        }
        assert_eq!(fields(&line).len(), plain.len(), "{line:?}");
    }
}

#[test]
fn hostile_kubernetes_name_cannot_forge_a_field() {
    let keys = |line: &str| fields(line).into_iter().map(|(key, _)| key).collect::<Vec<_>>();
    let plain = render(false, &testing::in_pods());
    for name in testing::hostile_texts() {
        let line = render(false, &testing::in_pods_called(&name));
        assert!(testing::is_harmless(&line), "{line:?}");
        assert_eq!(line.find('\n'), Some(line.len() - 1));
        assert_eq!(keys(&line), keys(&plain), "{line:?}");
    }
}

#[test]
fn fields_up_to_duration_are_kmesh_fields() {
    let line = render(false, &testing::example());
    let kmesh = &line[..line.find(", start_time=").unwrap()];
    assert!(kmesh.ends_with("duration=2.733902ms"));
    let keys: Vec<_> = fields(&format!("{kmesh}\n")).into_iter().map(|field| field.0).collect();
    let expected = [
        "time",
        "src.addr",
        "src.workload",
        "src.namespace",
        "dst.addr",
        "dst.service",
        "dst.workload",
        "dst.namespace",
        "direction",
        "sent_bytes",
        "received_bytes",
        "duration",
    ];
    assert_eq!(keys, expected);
}

#[test]
fn color_marks_failures_and_does_not_change_the_text() {
    assert_eq!(render(true, &testing::example()), EXAMPLE);
    let colored = render(true, &testing::refused());
    assert!(colored.contains("outcome=\x1b[31mrefused\x1b[0m, "), "{colored}");
    assert!(colored.contains("errno=\x1b[31mECONNREFUSED\x1b[0m, "), "{colored}");
    for record in testing::all() {
        let stripped = render(true, &record).replace(RED, "").replace(RESET, "");
        assert_eq!(stripped, render(false, &record));
    }
}

#[test]
fn reset_reason_and_drops_stand_at_the_end() {
    let drops = |drops: &[(PacketDirection, &str, u64)]| Record {
        drops: Some(
            drops
                .iter()
                .map(|&(direction, reason, packets)| testing::drops(direction, reason, packets))
                .collect(),
        ),
        ..testing::example()
    };
    let (sent, received) = (PacketDirection::Sent, PacketDirection::Received);
    let mut update = testing::dropped();
    (update.event, update.outcome) = (Event::Update, None);
    let hostile = Record {
        reset_reason: Some("a, drops=0\x1b".into()),
        ..drops(&[(sent, "x\ny", 1)])
    };
    let cases = [
        (testing::example(), "preexisting=false, reset_reason=-, drops=-"),
        (
            testing::aborted(),
            "preexisting=false, reset_reason=TCP_ABORT_ON_CLOSE, drops=0",
        ),
        (
            testing::dropped(),
            "preexisting=false, reset_reason=-, drops=NETFILTER_DROP:6",
        ),
        (
            update,
            "preexisting=false, event=update, reset_reason=-, drops=NETFILTER_DROP:6",
        ),
        (
            drops(&[
                (sent, "A", 1),
                (sent, "B", 20),
                (received, "A", 2),
                (received, "C", u64::MAX),
            ]),
            "reset_reason=-, drops=A:3/B:20/C:18446744073709551615",
        ),
        (hostile, r#"reset_reason="a, drops=0\u001b", drops="x\u000ay:1""#),
    ];
    for (record, expected) in cases {
        let line = render(false, &record);
        assert!(line.ends_with(&format!(", {expected}\n")), "{line}");
    }
}

#[test]
fn rejects_and_listeners_print_the_documented_lines() {
    let lines = testing::reports();
    let lines: Vec<_> = lines
        .iter()
        .map(|record| printed(true, |log| log.report(record)))
        .collect();
    let expected = [
        "reject: 2024-09-14 08:19:26.552709932 +0000 UTC src.addr=10.244.0.17, \
         src.workload=prometheus-5fb7f6f8d8-h9cts, src.namespace=istio-system, dst.addr=10.244.0.13:9081, \
         dst.workload=productpage-v1-8499c849b9-bz9t9, dst.namespace=echo-1-27855, reason=NO_SOCKET, count=12, \
         netns=4026532291\n",
        "listener: 2024-09-14 08:19:26.552709932 +0000 UTC dst.addr=0.0.0.0:9080, \
         dst.workload=productpage-v1-8499c849b9-bz9t9, dst.namespace=echo-1-27855, process=python3/4711, \
         local.netns=4026532291, local.cgroup_id=8123, local.container_id=-, local.container=productpage, \
         id=5f2c81-0, backlog=129, max_backlog=128, half_open=3, dropped=5, dropped_total=40\n",
        "listener: 2024-09-14 08:19:26.552709932 +0000 UTC dst.addr=[::]:22, dst.workload=-, dst.namespace=-, \
         process=-, local.netns=4026532291, local.cgroup_id=8123, local.container_id=-, local.container=-, \
         id=5f2c82-0, backlog=0, max_backlog=4096, half_open=0, dropped=0, dropped_total=0\n",
        "reject: 2024-09-14 08:19:26.552709932 +0000 UTC src.addr=[fd00::1], src.workload=-, src.namespace=-, \
         dst.addr=[fd00::2]:81, dst.workload=-, dst.namespace=-, reason=-, count=1, netns=4026532291\n",
    ];
    assert_eq!(lines, expected);
}

#[test]
fn reports_print_only_if_their_event_is_selected() {
    let out = testing::Shared::default();
    let events = Events {
        listener: true,
        ..Events::NONE
    };
    let mut log = Log::new(events, false, TimeFormat::Utc, Stdout::to(out.clone()));
    for record in testing::reports() {
        log.report(&record).unwrap();
    }
    log.flush().unwrap();
    assert!(out.text().lines().all(|line| line.starts_with("listener: ")));
    assert_eq!(out.text().lines().count(), 2);
}

#[test]
fn joined_line_ends_with_the_outcome_of_the_other_end() {
    let ends = testing::joined();
    let lines = ends.iter().map(|record| render(false, record)).collect::<Vec<_>>();
    for (line, outcome) in lines.iter().zip(["ok", "-", "-"]) {
        assert!(line.ends_with(&format!(", peer_outcome={outcome}\n")), "{line}");
    }
}
