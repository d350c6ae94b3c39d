//! Tests of each flag: the records that it passes. The tests in `oracle` combine flags at random.

use std::sync::Arc;

use clap::Parser;

use super::*;
use crate::config::Config;
use crate::config::tests::{PLAIN, parsed};
use crate::output::testing::{comm, example, random, reports};
use crate::record::{
    ContainerId, Direction, Event, Names, Outcome, Pod, Process, ProcessBy, Record, Service, ServiceBy, ServiceMatch,
    Workload,
};

fn filter(arguments: &str) -> Filter {
    Filter::from(&parsed(arguments).filters)
}

pub(super) fn process(pid: u32, name: &[u8]) -> Option<Process> {
    Some(Process {
        pid,
        comm: comm(name),
        by: ProcessBy::Close,
    })
}

/// Returns records by name. `web` and `web-client` are the two ends of one connection.
fn records() -> [(&'static str, Record); 5] {
    let web = Record {
        direction: Direction::Inbound,
        family: Family::Ipv4,
        src: "10.0.0.1:40001".parse().unwrap(),
        dst: "10.0.0.2:80".parse().unwrap(),
        process: process(10, b"nginx"),
        container_id: ContainerId::new(&"3f9a".repeat(16)),
        established: true,
        outcome: Some(Outcome::Ok),
        observed_ns: 1_000_000,
        sent_bytes: 600,
        received_bytes: 400,
        ..example()
    };
    let web_client = Record {
        direction: Direction::Outbound,
        process: process(20, b"curl"),
        container_id: ContainerId::new(&"3fff".repeat(16)),
        outcome: Some(Outcome::ResetByPeer),
        observed_ns: 2_000_000,
        sent_bytes: 400,
        received_bytes: 599,
        ..web.clone()
    };
    let refused = Record {
        direction: Direction::Outbound,
        family: Family::Ipv6,
        src: "[fd00::1]:80".parse().unwrap(),
        dst: "[fd00::2]:8500".parse().unwrap(),
        process: process(30, b"nginx: \xff"),
        container_id: None,
        established: false,
        outcome: Some(Outcome::Refused),
        observed_ns: 5_000,
        sent_bytes: 0,
        received_bytes: 0,
        ..example()
    };
    // An open connection of an unknown process.
    let open = Record {
        event: Event::Update,
        direction: Direction::Inbound,
        family: Family::Ipv6,
        src: "[fd00::2]:443".parse().unwrap(),
        dst: "[fd00::1]:443".parse().unwrap(),
        process: None,
        container_id: None,
        preexisting: true,
        duration_ns: None,
        established: true,
        outcome: None,
        observed_ns: 60_000_000_000,
        sent_bytes: u64::MAX,
        received_bytes: 1,
        ..example()
    };
    // A connection of a socket to itself.
    let own = Record {
        direction: Direction::Outbound,
        family: Family::Ipv4,
        src: "127.0.0.1:9000".parse().unwrap(),
        dst: "127.0.0.1:9000".parse().unwrap(),
        process: process(10, b""),
        container_id: None,
        established: true,
        outcome: Some(Outcome::Unknown),
        observed_ns: 999_999,
        sent_bytes: 500,
        received_bytes: 500,
        ..example()
    };
    [
        ("web", web),
        ("web-client", web_client),
        ("refused", refused),
        ("open", open),
        ("own", own),
    ]
}

fn check(cases: &[(&str, &str)]) {
    for (arguments, expected) in cases {
        let filter = filter(arguments);
        let selected: Vec<_> = records()
            .into_iter()
            .filter(|(_, record)| filter.passes(record))
            .map(|(name, _)| name)
            .collect();
        assert_eq!(selected.join(" "), *expected, "{arguments}");
    }
}

#[test]
fn default_filter_passes_every_record() {
    check(&[("", "web web-client refused open own")]);
    assert_eq!(filter(""), Filter::default());
}

#[test]
fn port_flags_match_client_or_server_port() {
    check(&[
        ("--port 80", "web web-client"),
        ("-p 80", "web web-client"),
        ("--port !80", "refused open own"),
        ("--port 40001", ""),
        ("--port 443,9000", "open own"),
        ("--port 443 -p 9000", "open own"),
        ("--port 8000-8999", "refused"),
        ("--port 8500-8500", "refused"),
        ("--port 8501-65535", "own"),
        ("--port 0-8499", "web web-client open"),
        ("--port !8000-9000", "web web-client open"),
        ("--port 0-65535,!443", "web web-client refused own"),
        ("--to-port 80", "web web-client"),
        ("--to-port !80", "refused open own"),
        ("--from-port 80", "refused"),
        ("--from-port !80", "web web-client open own"),
        ("--from-port 40000-50000,443", "web web-client open"),
        ("--from-port 80 --to-port 8500", "refused"),
        ("--from-port 80 --to-port 80", ""),
        ("--port 443 --from-port 443", "open"),
    ]);
}

#[test]
fn ip_flags_match_address_or_network() {
    check(&[
        ("--ip 10.0.0.1", "web web-client"),
        ("--ip 10.0.0.2", "web web-client"),
        ("--ip !10.0.0.2", "refused open own"),
        ("--ip fd00::1", "refused open"),
        ("--ip FD00:0::1", "refused open"),
        ("--ip fd00::1,127.0.0.1", "refused open own"),
        ("--ip fd00::/8 --ip 127.0.0.0/8", "refused open own"),
        ("--ip 10.0.0.3/31", "web web-client"),
        ("--ip 10.0.0.4/31", ""),
        ("--ip ::ffff:10.0.0.1", "web web-client"),
        ("--ip ::ffff:10.0.0.0/104", "web web-client"),
        ("--ip ::ffff:0.0.0.0/96", "web web-client own"),
        ("--ip 0.0.0.0/0", "web web-client own"),
        ("--ip ::/0", "refused open"),
        ("--ip !::/0", "web web-client own"),
        ("--from-ip 10.0.0.1", "web web-client"),
        ("--from-ip 10.0.0.2", ""),
        ("--from-ip !10.0.0.1", "refused open own"),
        ("--from-ip fd00::1", "refused"),
        ("--to-ip 10.0.0.2", "web web-client"),
        ("--to-ip 10.0.0.1", ""),
        ("--to-ip fd00::1", "open"),
        ("--to-ip !fd00::1,!127.0.0.0/8", "web web-client refused"),
        ("--from-ip fd00::/16 --to-ip fd00::2", "refused"),
        ("--ip fd00::2 --from-ip !fd00::2", "refused"),
        ("-4", "web web-client own"),
        ("-6", "refused open"),
        ("-4 -4 --ip 127.0.0.1", "own"),
    ]);
}

#[test]
fn process_flags_match_pid_name_or_container() {
    check(&[
        ("--pid 10", "web own"),
        ("--pid 10,20", "web web-client own"),
        ("--pid !10", "web-client refused open"),
        ("--pid 10 --pid !20", "web own"),
        ("--comm nginx", "web"),
        ("--comm NGINX", ""),
        ("--comm ngin", ""),
        ("--comm ginx", ""),
        ("--comm nginx*", "web refused"),
        ("--comm *x*", "web refused"),
        ("--comm *", "web web-client refused own"),
        ("--comm **", "web web-client refused own"),
        ("--comm c*l", "web-client"),
        ("--comm c*r*l", "web-client"),
        ("--comm c*l*l", ""),
        ("--comm !nginx*", "web-client open own"),
        ("--comm nginx*,!nginx", "refused"),
        ("--comm curl,nginx", "web web-client"),
        ("--container 3f9a", "web"),
        ("--container 3F", "web web-client"),
        ("--container f9a", ""),
        ("--container containerd://3fff", "web-client"),
        ("--container 3f,!3f9a", "web-client"),
        ("--container !3f", "refused open own"),
        ("--container 3f --pid 20", "web-client"),
    ]);
    let whole = "3f9a".repeat(16);
    check(&[
        (&format!("--container {whole}"), "web"),
        (&format!("--container cri-o://{whole}"), "web"),
    ]);
}

#[test]
fn outcome_flags_match_direction_or_outcome() {
    check(&[
        ("--direction inbound", "web open"),
        ("--direction outbound", "web-client refused own"),
        ("--direction !inbound", "web-client refused own"),
        ("--direction inbound,outbound", "web web-client refused open own"),
        ("--outcome ok", "web"),
        ("--outcome ok,refused", "web refused"),
        ("--outcome !ok", "web-client refused open own"),
        ("--outcome unknown --outcome reset_by_peer", "web-client own"),
        ("--failed", "web-client refused own"),
        ("--failed --outcome !refused", "web-client own"),
        ("--established-only", "web web-client open own"),
        ("--established-only --failed", "web-client own"),
    ]);
}

/// Returns the pod `NAME-0` of the workload `NAME`, with the label `app=NAME`.
fn pod(namespace: &str, kind: &str, name: &str) -> Option<Arc<Pod>> {
    Some(Arc::new(Pod {
        uid: name.into(),
        namespace: namespace.into(),
        name: format!("{name}-0").into(),
        workload: Some(Workload {
            kind: kind.into(),
            name: name.into(),
        }),
        service_account: None,
        node: None,
        host_network: None,
        labels: Some([("app", name)].into_iter().collect()),
    }))
}

#[test]
fn name_flags_match_pod_workload_service_or_labels() {
    let [(_, mut web), (_, mut client), (_, mut lonely), ..] = records();
    // One connection from shop/web to data/db through a service, and one from outside to shop/web.
    web.names.src.pod = pod("shop", "Deployment", "web");
    web.names.dst.pod = pod("data", "StatefulSet", "db");
    web.names.service = Some(ServiceMatch {
        service: Arc::new(Service {
            namespace: "data".into(),
            name: "database".into(),
            host: "database.data.svc.cluster.local".into(),
        }),
        by: ServiceBy::Vip,
        ambiguous: false,
    });
    client.names.dst.pod = pod("shop", "Deployment", "web");
    lonely.names = Names::default();
    let cases = [
        ("-n shop", "in out"),
        ("-n data", "in"),
        ("-n sh*,data", "in out"),
        ("-n !data", "out none"),
        ("--from-namespace shop", "in"),
        ("--to-namespace shop", "out"),
        ("--to-namespace data", "in"),
        ("-n * --from-namespace !shop", "out"),
        ("--pod web-0", "in out"),
        ("--pod shop/web-0", "in out"),
        ("--pod data/web-0", ""),
        ("--pod db", ""),
        ("--pod */db-*", "in"),
        ("--from-pod web-*", "in"),
        ("--to-pod web-*", "out"),
        ("--workload web", "in out"),
        ("--workload Deployment/web", "in out"),
        ("--workload deployment/*", "in out"),
        ("--workload StatefulSet/web", ""),
        ("--to-workload StatefulSet/*", "in"),
        ("--service database", "in"),
        ("--service data/database", "in"),
        ("--service shop/database", ""),
        ("--service database.data.svc.cluster.local", "in"),
        ("--service database.data", ""),
        ("--service !database", "out none"),
        ("-l app=web", "in out"),
        ("-l app=db", "in"),
        ("-l app=web -l app=db", ""),
        ("--from-selector app=web --to-selector app=db", "in"),
        ("-l app!=web", "in"),
        ("-l !other", "in out"),
        ("--to-selector app", "in out"),
        ("--from-selector app", "in"),
    ];
    for (arguments, expected) in cases {
        let filter = self::filter(arguments);
        let selected = [("in", &web), ("out", &client), ("none", &lonely)]
            .into_iter()
            .filter(|(_, record)| filter.passes(record))
            .map(|(name, _)| name);
        assert_eq!(selected.collect::<Vec<_>>().join(" "), expected, "{arguments}");
    }
}

#[test]
fn waiting_attempts_match_connecting_and_after_one_second_failed() {
    let [.., (_, open), _] = records();
    let attempt = |observed_ns| Record {
        direction: Direction::Outbound,
        established: false,
        observed_ns,
        ..open.clone()
    };
    let (new, old) = (attempt(1_000_000_000), attempt(1_000_000_001));
    let opened = Record {
        event: Event::Open,
        ..old.clone()
    };
    for (arguments, expected, is_revocable) in [
        ("--connecting", [true, true, false, false], true),
        ("--failed", [false, true, false, false], true),
        ("--established-only", [false, false, true, false], false),
        ("--outcome !ok", [true; 4], false),
    ] {
        let filter = filter(arguments);
        let passes = [&new, &old, &open, &opened].map(|record| filter.passes(record));
        assert_eq!(passes, expected, "{arguments}");
        assert_eq!(filter.is_revocable(), is_revocable, "{arguments}");
    }
}

#[test]
fn min_flags_match_bytes_or_duration() {
    check(&[
        ("--min-bytes 0", "web web-client refused open own"),
        ("--min-bytes 1", "web web-client open own"),
        ("--min-bytes 1k", "web open own"),
        ("--min-bytes 1Ki", "open"),
        ("--min-bytes 18446744073709551615", "open"),
        ("--min-duration 0s", "web web-client refused open own"),
        ("--min-duration 1ms", "web web-client open"),
        ("--min-duration 999us", "web web-client open own"),
        ("--min-duration 1m", "open"),
        ("--min-duration 61s", ""),
    ]);
}

#[test]
fn flags_about_the_course_of_a_connection_do_not_apply_to_rejects_and_listeners() {
    let [rejected, listening, ..] = <[Record; 4]>::try_from(reports()).unwrap();
    let cases = [
        ("--failed", true, true),
        ("--outcome ok", true, true),
        ("--connecting", true, true),
        ("--established-only", true, true),
        ("--min-duration 1s", true, true),
        ("--min-bytes 1", true, true),
        ("--port 9081", true, false),
        ("--to-ip 10.244.0.13", true, false),
        ("--from-namespace istio-system", true, false),
        ("-n echo-1-27855", true, true),
        ("--workload productpage-v1", true, true),
        ("--pid 4711", false, true),
        ("-6", false, false),
        ("--direction outbound", false, false),
    ];
    for (arguments, passes_rejected, passes_listening) in cases {
        let filter = filter(arguments);
        assert_eq!(filter.passes(&rejected), passes_rejected, "{arguments}");
        assert_eq!(filter.passes(&listening), passes_listening, "{arguments}");
    }
}

/// The values are random sequences of special characters and of parts of valid values.
#[test]
fn random_values_do_not_panic() {
    const PIECES: [&str; 30] = [
        "=", "(", ")", "in", "<", "Pod", "!", "-", ",", "*", "/", ":", "::", ".", "%", "0", "1", "80", "255", "65536",
        "ffff", "10.0.0.1", "fd00::1", "é", "\u{202e}", " ", "k", "Mi", "ms", "nginx",
    ];
    const FLAGS: [&str; 18] = [
        "--namespace",
        "--pod",
        "--workload",
        "--service",
        "--selector",
        "--port",
        "--from-port",
        "--to-port",
        "--ip",
        "--from-ip",
        "--to-ip",
        "--pid",
        "--comm",
        "--container",
        "--direction",
        "--outcome",
        "--min-duration",
        "--min-bytes",
    ];
    let mut next = random(7);
    let mut accepted = 0;
    let all = records();
    for _ in 0..20_000 {
        let mut below = |limit: usize| (next() % limit as u64) as usize;
        let flag = FLAGS[below(FLAGS.len())];
        let value: String = (0..below(6)).map(|_| PIECES[below(PIECES.len())]).collect();
        if let Ok(cli) = Cli::try_parse_from(["kmesh-trace".to_owned(), format!("{flag}={value}")]) {
            let filter = Filter::from(&cli.filters);
            all.iter().for_each(|(_, record)| _ = filter.passes(record));
            accepted += 1;
        }
    }
    assert!(accepted > 1000, "{accepted}");
}

#[test]
fn flags_that_contradict_each_other_are_refused_with_the_reason() {
    let cases: &[(&str, &[&str])] = &[
        ("-4 --ip ::1", &["-4", "--ip ::1", "an IPv6 address"]),
        ("-4 --ip ::1,fd00::/8", &["-4", "--ip ::1", "an IPv6 address"]),
        (
            "-6 --from-ip 10.0.0.0/8",
            &["-6", "--from-ip 10.0.0.0/8", "an IPv4 address"],
        ),
        (
            "-6 --to-ip ::ffff:10.0.0.1",
            &["-6", "--to-ip 10.0.0.1", "an IPv4 address"],
        ),
        ("--failed --outcome ok", &["--outcome ok", "--failed"]),
        (
            "--established-only --outcome refused,connect_timeout",
            &["--outcome refused", "--established-only"],
        ),
        ("--pod web --no-resolve", &["--pod", "--no-resolve", "by names"]),
        ("-n shop --no-resolve", &["--namespace", "--no-resolve", "by names"]),
        ("--no-resolve --to-pod web", &["--to-pod", "--no-resolve", "by names"]),
        ("-l app --no-resolve", &["--selector", "--no-resolve", "by names"]),
        (
            "--service !web --no-resolve",
            &["--service", "--no-resolve", "by names"],
        ),
    ];
    for (arguments, parts) in cases {
        let error = Config::new(&parsed(arguments), PLAIN).unwrap_err().to_string();
        for part in *parts {
            assert!(error.contains(part), "{arguments}: {part}: {error}");
        }
    }
}

#[test]
fn flags_that_may_match_are_accepted() {
    let cases = [
        "-4",
        "-6 --ip ::1",
        "-4 --ip ::ffff:10.0.0.1",
        "-4 --ip ::1,10.0.0.1",
        "-4 --ip !::1",
        "--from-ip ::1 --to-ip 127.0.0.1",
        "--ip 0.0.0.0/0,::/0",
        "--port 0",
        "--port 65535",
        "--port 80,!80",
        "--pid 1,!2",
        "--comm !*",
        "-n shop,!shop-*",
        "-l app=a --from-selector app=b",
        "--direction inbound --outcome refused",
        "--events open --failed",
        "--failed --outcome ok,refused",
        "--failed --outcome !ok",
        "--established-only --outcome refused,reset",
        "--established-only --outcome unreachable",
        "--established-only --outcome !refused",
        "--min-bytes 0",
        "--min-duration 0s",
        "--no-resolve --port 80 --comm nginx --container 3f",
    ];
    for arguments in cases {
        let config = Config::new(&parsed(arguments), PLAIN);
        assert!(config.is_ok(), "{arguments}: {config:?}");
    }
}

#[test]
fn every_name_flag_is_refused_with_no_resolve() {
    let stems = ["namespace", "pod", "workload", "selector"];
    let variants = stems
        .iter()
        .flat_map(|stem| ["", "from-", "to-"].map(|end| format!("--{end}{stem}")));
    for flag in variants.chain(["--service".to_owned()]) {
        let cli = parsed(&format!("{flag} web --no-resolve"));
        let error = Config::new(&cli, PLAIN).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{flag} ")), "{flag}: {error}");
    }
}

#[test]
fn prompt_filter_has_the_flags_of_the_command_line() {
    for text in ["", "  ", "--port 443", "-4 --failed --comm 'n*'", "-p !443,80"] {
        assert!(parse_prompt_filter(text).is_ok(), "{text}");
    }
    assert_eq!(parse_prompt_filter(""), Ok(Filter::default()));
    for (text, part) in [
        ("443", "443"),
        ("--port x", "--port"),
        ("--prot 80", "--prot"),
        ("-4 -6", "-4"),
        ("-4 --ip ::1", "--ip"),
        ("--failed --outcome ok", "--outcome ok"),
        ("--help", "--help"),
    ] {
        let error = parse_prompt_filter(text).unwrap_err();
        assert!(error.contains(part) && !error.contains('\n'), "{text}: {error}");
    }
}
