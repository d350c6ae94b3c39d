//! A second implementation of the filter flags, as simple as possible, over the text of the flags. For thousands of
//! random filters, it must pass the same records as [`Filter`].

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use clap::Parser;

use super::tests::process;
use super::*;
use crate::output::testing::{example, random};
use crate::record::{
    ContainerId, Direction, End, Event, Names, Outcome, Pod, Record, Service, ServiceBy, ServiceMatch, Workload,
};

const FLAGS: [&str; 29] = [
    "--namespace",
    "--from-namespace",
    "--to-namespace",
    "--pod",
    "--from-pod",
    "--to-pod",
    "--workload",
    "--from-workload",
    "--to-workload",
    "--service",
    "--selector",
    "--from-selector",
    "--to-selector",
    "--port",
    "--from-port",
    "--to-port",
    "--ip",
    "--from-ip",
    "--to-ip",
    "-4",
    "-6",
    "--pid",
    "--comm",
    "--container",
    "--direction",
    "--outcome",
    "--failed",
    "--established-only",
    "--min-bytes",
];

const PORTS: [u16; 9] = [0, 1, 79, 80, 81, 443, 8500, 9000, 65535];
const ADDRESSES: [&str; 9] = [
    "0.0.0.1",
    "10.0.0.1",
    "10.0.0.2",
    "10.1.0.1",
    "255.255.255.255",
    "::1",
    "fd00::1",
    "fd00::1:1",
    "ffff:ffff::",
];
const NETWORKS: [&str; 16] = [
    "10.0.0.1",
    "10.0.0.2",
    "10.0.0.0/31",
    "10.0.0.0/8",
    "10.255.0.0/15",
    "0.0.0.0/0",
    "128.0.0.0/1",
    "::ffff:10.0.0.1",
    "::ffff:10.0.0.0/120",
    "::1",
    "fd00::1",
    "fd00::/8",
    "fd00::1:0/112",
    "::/0",
    "8000::/1",
    "::/1",
];
const NAMES: [&str; 6] = ["", "a", "ab", "abab", "nginx", "nginx: worker"];
const PATTERNS: [&str; 9] = ["*", "a", "a*", "*b", "a*b", "*a*", "ab*ab", "nginx", "n*x*"];
const IDS: [&str; 3] = ["00", "0f", "f0"];
const PREFIXES: [&str; 5] = ["0", "00", "0f", "f0f", "e"];
const NAMESPACES: [&str; 3] = ["shop", "shop-2", "db"];
const NAMESPACE_PATTERNS: [&str; 5] = ["shop", "shop-*", "*", "db", "s*2"];
const PODS: [&str; 3] = ["web-0", "web-1", "db"];
const POD_PATTERNS: [&str; 6] = ["web-0", "shop/web-*", "*/db", "db/*", "*", "s*/*-1"];
const KINDS: [&str; 3] = ["Deployment", "StatefulSet", "Pod"];
const WORKLOAD_PATTERNS: [&str; 6] = [
    "web-0",
    "Deployment/web-1",
    "deployment/*",
    "StatefulSet/d*",
    "pod/web-*",
    "*/db",
];
const SERVICE_PATTERNS: [&str; 6] = [
    "web-0",
    "shop/web-0",
    "*.shop.svc.cluster.local",
    "web-1.shop-2.svc.cluster.local",
    "sh*/*",
    "*",
];
const REQUIREMENTS: [&str; 10] = [
    "app",
    "!app",
    "app=web",
    "app==db",
    "app!=web",
    "app in (web)",
    "app notin (db)",
    "n>4",
    "n<5",
    "n=",
];
const BYTES: [&str; 4] = ["0", "1", "1k", "2Ki"];

/// A source of random choices.
struct Dice<F>(F);

impl<F: FnMut() -> u64> Dice<F> {
    fn below(&mut self, limit: usize) -> usize {
        ((self.0)() % limit as u64) as usize
    }

    fn one<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())].clone()
    }

    fn value(&mut self, flag: &str) -> String {
        let value = match flag {
            "--port" | "--from-port" | "--to-port" => {
                let (one, other) = (self.one(&PORTS), self.one(&PORTS));
                match self.below(2) {
                    0 => one.to_string(),
                    _ => format!("{}-{}", one.min(other), one.max(other)),
                }
            }
            "--ip" | "--from-ip" | "--to-ip" => self.one(&NETWORKS).to_owned(),
            "--pid" => (1 + self.below(3)).to_string(),
            "--comm" => self.one(&PATTERNS).to_owned(),
            "--container" => self.one(&PREFIXES).to_owned(),
            "--direction" => self.one(Direction::ALL).name().to_owned(),
            "--outcome" => match self.below(5) {
                0 => "reset".to_owned(),
                _ => self.one(Outcome::ALL).name().to_owned(),
            },
            "--namespace" | "--from-namespace" | "--to-namespace" => self.one(&NAMESPACE_PATTERNS).to_owned(),
            "--pod" | "--from-pod" | "--to-pod" => self.one(&POD_PATTERNS).to_owned(),
            "--workload" | "--from-workload" | "--to-workload" => self.one(&WORKLOAD_PATTERNS).to_owned(),
            "--service" => self.one(&SERVICE_PATTERNS).to_owned(),
            // The grammar of selectors has its own negation.
            "--selector" | "--from-selector" | "--to-selector" => return self.one(&REQUIREMENTS).to_owned(),
            _ => unreachable!("{flag}"),
        };
        let not = if self.below(3) == 0 { "!" } else { "" };
        format!("{not}{value}")
    }

    /// Returns the flag with random values.
    fn argument(&mut self, flag: &'static str) -> (&'static str, String) {
        let value = match flag {
            "-4" | "-6" | "--failed" | "--established-only" => String::new(),
            "--min-bytes" => self.one(&BYTES).to_owned(),
            _ => {
                let count = 1 + self.below(3);
                let values: Vec<_> = (0..count).map(|_| self.value(flag)).collect();
                values.join(",")
            }
        };
        (flag, value)
    }

    fn arguments(&mut self, flags: &[&'static str]) -> Vec<(&'static str, String)> {
        let count = 1 + self.below(4);
        (0..count)
            .map(|_| {
                let flag = self.one(flags);
                self.argument(flag)
            })
            .collect()
    }

    fn pod(&mut self) -> Option<Arc<Pod>> {
        let labels = |dice: &mut Self| {
            let app = match dice.below(3) {
                0 => None,
                _ => Some(("app", dice.one(&["web", "db"]))),
            };
            let n = match dice.below(2) {
                0 => None,
                _ => Some(("n", dice.one(&["", "4", "5", "x"]))),
            };
            app.into_iter().chain(n).collect()
        };
        (self.below(3) != 0).then(|| {
            Arc::new(Pod {
                uid: "u".into(),
                namespace: self.one(&NAMESPACES).into(),
                name: self.one(&PODS).into(),
                workload: (self.below(4) != 0).then(|| Workload {
                    kind: self.one(&KINDS).into(),
                    name: self.one(&PODS).into(),
                }),
                service_account: None,
                node: None,
                host_network: None,
                labels: (self.below(4) != 0).then(|| labels(self)),
            })
        })
    }

    fn names(&mut self) -> Names {
        let end = |dice: &mut Self| End {
            pod: dice.pod(),
            node: None,
        };
        Names {
            src: end(self),
            dst: end(self),
            service: (self.below(2) == 0).then(|| {
                let (namespace, name) = (self.one(&NAMESPACES), self.one(&PODS));
                ServiceMatch {
                    service: Arc::new(Service {
                        namespace: namespace.into(),
                        name: name.into(),
                        host: format!("{name}.{namespace}.svc.cluster.local").into(),
                    }),
                    by: ServiceBy::Vip,
                    ambiguous: false,
                }
            }),
            ..Names::default()
        }
    }

    /// Returns a random record that could occur.
    fn record(&mut self) -> Record {
        let src: IpAddr = self.one(&ADDRESSES).parse().unwrap();
        let dst = loop {
            let dst: IpAddr = self.one(&ADDRESSES).parse().unwrap();
            if dst.is_ipv4() == src.is_ipv4() {
                break dst;
            }
        };
        let outcome = match self.below(4) {
            0 => None,
            _ => Some(self.one(Outcome::ALL)),
        };
        let is_attempt = outcome.is_some_and(is_attempt);
        let bytes = if is_attempt {
            [0; 2]
        } else {
            [self.below(1500), self.below(1500)]
        };
        Record {
            event: if outcome.is_some() { Event::Close } else { Event::Update },
            direction: if is_attempt {
                Direction::Outbound
            } else {
                self.one(Direction::ALL)
            },
            family: if src.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 },
            src: SocketAddr::new(src, self.one(&PORTS)),
            dst: SocketAddr::new(dst, self.one(&PORTS)),
            process: match self.below(4) {
                0 => None,
                _ => process(1 + self.below(4) as u32, self.one(&NAMES).as_bytes()),
            },
            container_id: match self.below(4) {
                0 => None,
                _ => ContainerId::new(&self.one(&IDS).repeat(32)),
            },
            names: self.names(),
            established: outcome == Some(Outcome::Ok) || !is_attempt && self.below(3) != 0,
            outcome,
            observed_ns: self.one(&[1_000_000, 1_000_000_000, 1_000_000_001]),
            sent_bytes: bytes[0] as u64,
            received_bytes: bytes[1] as u64,
            ..example()
        }
    }
}

fn is_attempt(outcome: Outcome) -> bool {
    ["refused", "connect_timeout", "connect_aborted"].contains(&outcome.name())
}

fn port(value: &str, port: u16) -> bool {
    match value.split_once('-') {
        Some((first, last)) => port >= first.parse().unwrap() && port <= last.parse().unwrap(),
        None => value == port.to_string(),
    }
}

fn bits(address: &str) -> String {
    match address.parse().unwrap() {
        IpAddr::V4(address) => address.octets().map(|octet| format!("{octet:08b}")).concat(),
        IpAddr::V6(address) => address.segments().map(|segment| format!("{segment:016b}")).concat(),
    }
}

fn address(value: &str, address: IpAddr) -> bool {
    let (value, is_mapped) = match value.strip_prefix("::ffff:") {
        Some(rest) => (rest, true),
        None => (value, false),
    };
    let (network, prefix) = value.split_once('/').unwrap_or((value, ""));
    let (network, address) = (bits(network), bits(&address.to_string()));
    let prefix = match prefix.parse::<usize>() {
        Ok(prefix) if is_mapped => prefix - 96,
        Ok(prefix) => prefix,
        Err(_) => network.len(),
    };
    network.len() == address.len() && network[..prefix] == address[..prefix]
}

fn name(pattern: &[u8], name: &[u8]) -> bool {
    match (pattern, name) {
        ([], rest) => rest.is_empty(),
        ([b'*', behind @ ..], _) => (0..=name.len()).any(|run| self::name(behind, &name[run..])),
        ([first, behind @ ..], [byte, rest @ ..]) => first == byte && self::name(behind, rest),
        (_, []) => false,
    }
}

fn glob(pattern: &str, text: &str) -> bool {
    name(pattern.as_bytes(), text.as_bytes())
}

/// Matches `name` or `prefix/name`.
fn qualified(pattern: &str, before: &str, text: &str) -> bool {
    match pattern.split_once('/') {
        Some((wanted, pattern)) => glob(wanted, before) && glob(pattern, text),
        None => glob(pattern, text),
    }
}

fn pod(flag: &str, value: &str, pod: Option<&Arc<Pod>>) -> bool {
    let Some(pod) = pod else { return false };
    match flag {
        "namespace" => glob(value, &pod.namespace),
        "pod" => qualified(value, &pod.namespace, &pod.name),
        _ => pod
            .workload
            .as_ref()
            .is_some_and(|workload| qualified(&value.to_lowercase(), &workload.kind.to_lowercase(), &workload.name)),
    }
}

/// Returns whether the labels satisfy all of these requirements.
fn selects(requirements: &[&str], pod: Option<&Arc<Pod>>) -> bool {
    let Some(labels) = pod.and_then(|pod| pod.labels.as_ref()) else {
        return false;
    };
    let (app, n) = (labels.get("app"), labels.get("n"));
    let number = n.and_then(|n| n.parse::<i64>().ok());
    requirements.iter().all(|requirement| match *requirement {
        "app" => app.is_some(),
        "!app" => app.is_none(),
        "app=web" | "app in (web)" => app == Some("web"),
        "app==db" => app == Some("db"),
        "app!=web" => app != Some("web"),
        "app notin (db)" => app != Some("db"),
        "n>4" => number.is_some_and(|number| number > 4),
        "n<5" => number.is_some_and(|number| number < 5),
        "n=" => n == Some(""),
        _ => unreachable!("{requirement}"),
    })
}

/// Returns whether one value of one flag matches.
fn matches(flag: &str, value: &str, record: &Record) -> bool {
    let (from, to) = (record.src, record.dst);
    let (src, dst) = (record.names.src.pod.as_ref(), record.names.dst.pod.as_ref());
    let service = record.names.service.as_ref().map(|called| &called.service);
    let in_namespace = || service.is_some_and(|service| glob(value, &service.namespace));
    match flag {
        "--namespace" => pod("namespace", value, src) || pod("namespace", value, dst) || in_namespace(),
        "--to-namespace" => pod("namespace", value, dst) || in_namespace(),
        "--from-namespace" | "--from-pod" | "--from-workload" => pod(&flag["--from-".len()..], value, src),
        "--to-pod" | "--to-workload" => pod(&flag["--to-".len()..], value, dst),
        "--pod" | "--workload" => pod(&flag[2..], value, src) || pod(&flag[2..], value, dst),
        "--service" => service.is_some_and(|service| match value.contains('.') {
            true => glob(value, &service.host),
            false => qualified(value, &service.namespace, &service.name),
        }),
        "--port" | "--to-port" => port(value, to.port()),
        "--from-port" => port(value, from.port()),
        "--ip" => address(value, from.ip()) || address(value, to.ip()),
        "--from-ip" => address(value, from.ip()),
        "--to-ip" => address(value, to.ip()),
        "--pid" => record.process.is_some_and(|process| process.pid.to_string() == value),
        "--comm" => record
            .process
            .is_some_and(|process| name(value.as_bytes(), process.comm.as_bytes())),
        "--container" => record.container_id.is_some_and(|id| id.as_str().starts_with(value)),
        "--direction" => record.direction.name() == value,
        "--outcome" => record.outcome.is_some_and(|outcome| match value {
            "reset" => outcome.name().starts_with("reset_"),
            _ => outcome.name() == value,
        }),
        _ => unreachable!("{flag}"),
    }
}

fn passes(arguments: &[(&'static str, String)], record: &Record) -> bool {
    let mut by_flag: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (flag, values) in arguments {
        by_flag.entry(flag).or_default().extend(values.split(','));
    }
    by_flag.into_iter().all(|(flag, values)| match flag {
        "-4" => record.src.is_ipv4(),
        "-6" => record.src.is_ipv6(),
        "--from-selector" => selects(&values, record.names.src.pod.as_ref()),
        "--to-selector" => selects(&values, record.names.dst.pod.as_ref()),
        "--selector" => {
            let ends = [&record.names.src, &record.names.dst];
            ends.iter().any(|end| selects(&values, end.pod.as_ref()))
        }
        "--failed" => match record.outcome {
            Some(outcome) => outcome.name() != "ok",
            None => !record.established && record.observed_ns > 1_000_000_000,
        },
        "--established-only" => record.established,
        // The last value overrides the ones before.
        "--min-bytes" => match values[values.len() - 1] {
            "0" => true,
            "1" => record.sent_bytes + record.received_bytes > 0,
            "1k" => record.sent_bytes + record.received_bytes > 999,
            _ => record.sent_bytes + record.received_bytes > 2047,
        },
        _ => {
            let positive: Vec<_> = values.iter().filter(|value| !value.starts_with('!')).collect();
            let mut negative = values.iter().filter_map(|value| value.strip_prefix('!'));
            (positive.is_empty() || positive.iter().any(|value| matches(flag, value, record)))
                && !negative.any(|value| matches(flag, value, record))
        }
    })
}

fn parsed(arguments: &[(&'static str, String)]) -> Filter {
    let words = arguments.iter().flat_map(|(flag, value)| [*flag, value]);
    let words = ["kmesh-trace"].into_iter().chain(words.filter(|word| !word.is_empty()));
    Filter::from(&Cli::try_parse_from(words).unwrap().filters)
}

/// Returns whether the arguments have both `-4` and `-6`, which the command line refuses.
fn is_both(arguments: &[(&'static str, String)]) -> bool {
    ["-4", "-6"]
        .iter()
        .all(|family| arguments.iter().any(|(flag, _)| flag == family))
}

#[test]
fn filter_passes_the_same_records_as_simple_implementation() {
    let mut dice = Dice(random(1));
    let records: Vec<_> = (0..1000).map(|_| dice.record()).collect();
    let mut passed = 0;
    for _ in 0..5000 {
        let arguments = dice.arguments(&FLAGS);
        if is_both(&arguments) {
            continue;
        }
        let filter = parsed(&arguments);
        for _ in 0..100 {
            let record = dice.one(&records);
            let expected = passes(&arguments, &record);
            assert_eq!(filter.passes(&record), expected, "{arguments:?} {record:?}");
            passed += usize::from(expected);
        }
    }
    // With few passing records, the test would prove little.
    assert!(passed > 20_000, "{passed}");
}
