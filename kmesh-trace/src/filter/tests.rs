//! What each flag selects, of records of both ends. [`oracle`] then tries them all together.

mod oracle;

use std::sync::Arc;

use clap::Parser;

use super::*;
use crate::cli::Cli;
use crate::record::{Called, ContainerId, Event, Process, ProcessBy, Service, ServiceBy, Workload};
use crate::render::testing::{comm, example, random};

/// What is typed, in words without spaces.
fn filter(arguments: &str) -> Filter {
    let arguments = ["kmesh-trace"].into_iter().chain(arguments.split_whitespace());
    Filter::from(&Cli::try_parse_from(arguments).unwrap().filters)
}

fn process(pid: u32, name: &[u8]) -> Option<Process> {
    Some(Process {
        pid,
        comm: comm(name),
        by: ProcessBy::Close,
    })
}

/// Records by name. `web` and `web-client` are the two ends of one connection.
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
    // Nobody knows whose, and it is open still.
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
    // With itself.
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
fn without_flags_all_pass() {
    check(&[("", "web web-client refused open own")]);
    assert_eq!(filter(""), Filter::default());
}

#[test]
fn ports() {
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
fn addresses() {
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
fn processes_and_containers() {
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
fn directions_and_ends() {
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

/// A pod of namespace `shop`, called like its workload, with label `app` of the same.
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
fn names() {
    let [(_, mut web), (_, mut client), (_, mut lonely), ..] = records();
    // From `shop/web` to `data/db` through a Service, and from outside to `shop/web`.
    web.names.src.pod = pod("shop", "Deployment", "web");
    web.names.dst.pod = pod("data", "StatefulSet", "db");
    web.names.service = Some(Called {
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
        let flag = filter.needs_names().unwrap();
        let typed = arguments.split(' ').next().unwrap();
        assert!(
            flag.starts_with(typed) || ["-n", "-l"].contains(&typed),
            "{arguments}: {flag}"
        );
    }
    assert_eq!(filter("--port 80 --comm nginx").needs_names(), None);
}

#[test]
fn sizes_and_times() {
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
fn every_value_has_its_rules() {
    fn errors<T: std::str::FromStr<Err = String>>(cases: &[(&str, &str)]) {
        for (text, part) in cases {
            match text.parse::<Term<T>>() {
                Err(error) => assert!(error.contains(part), "{text:?}: {error}"),
                Ok(_) => panic!("{text:?}"),
            }
        }
    }
    errors::<PortRange>(&[
        ("", "missing"),
        ("!", "missing"),
        ("!!80", "443"),
        ("65536", "65535"),
        ("99999999999999999999", "65535"),
        ("80-65536", "65535"),
        ("9-3", "3-9"),
        ("-3", "443"),
        ("3-", "443"),
        ("1-2-3", "443"),
        ("+80", "443"),
        (" 80", "443"),
        ("0x50", "443"),
        ("https", "443"),
    ]);
    errors::<Network>(&[
        ("10.0.0", "10.0.0.0/8"),
        ("010.0.0.1", "10.0.0.0/8"),
        ("10.0.0.1:80", "10.0.0.0/8"),
        ("[::1]", "10.0.0.0/8"),
        ("/8", "10.0.0.0/8"),
        ("10.0.0.0/", "0 to 32"),
        ("10.0.0.0/+8", "0 to 32"),
        ("10.0.0.0/33", "0 to 32"),
        ("10.0.0.0/256", "0 to 32"),
        ("10.0.0.0/8/8", "0 to 32"),
        ("10.0.0.0/255.0.0.0", "0 to 32"),
        ("::/129", "0 to 128"),
        ("fe80::1%eth0", "zones"),
        ("fe80::%1/10", "zones"),
    ]);
    errors::<Pid>(&[
        ("0", "first is 1"),
        ("4194304", "4194303"),
        ("99999999999", "4194303"),
        ("-1", "whole number"),
        ("nginx", "--comm"),
    ]);
    errors::<NamePattern>(&[
        ("a2345678901234567", "15 bytes"),
        ("*ééééééééé*", "15 bytes"),
        ("", "missing"),
    ]);
    errors::<NamespacePattern>(&[
        ("Shop", "lower-case"),
        ("shop/web", "lower-case"),
        ("my_shop", "lower-case"),
        (&"a".repeat(254), "253"),
    ]);
    errors::<PodPattern>(&[
        ("Web", "lower-case"),
        ("/web", "lower-case"),
        ("shop/", "lower-case"),
        ("a/b/c", "lower-case"),
    ]);
    errors::<WorkloadPattern>(&[
        ("Deploy-ment/web", "a kind"),
        ("/web", "a kind"),
        ("Deployment/Web", "lower-case"),
    ]);
    errors::<ServicePattern>(&[("web:80", "lower-case"), ("shop/web:80", "lower-case")]);
    errors::<IdPrefix>(&[
        ("web", "hexadecimal"),
        ("containerd://", "hexadecimal"),
        (&"a".repeat(65), "64 digits"),
    ]);
    assert!("a23456789012345*".parse::<Term<NamePattern>>().is_ok());
    assert!("4194303".parse::<Term<Pid>>().is_ok());
}

/// Strings that are nearly values: every character that means something, and some that mean nothing.
#[test]
fn no_string_panics() {
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
