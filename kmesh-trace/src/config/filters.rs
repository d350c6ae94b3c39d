//! The filter flags brought together: what they mean, unless nothing could ever pass them.

use std::time::Duration;

use crate::cli::{Cli, Filters};
use crate::filter::{Contradiction, Ends, Filter, Selector, Selectors, Term};
use crate::record::Family;

use super::{Events, Refusal};

/// The filter that `cli` asks for.
pub(super) fn filter(cli: &Cli, events: Events) -> Result<Filter, Refusal> {
    let flags = &cli.filters;
    if flags.ipv4 && flags.ipv6 {
        return Err(refusal(
            &["-4", "-6"],
            "no connection is both; without either, both pass",
        ));
    }
    let filter = Filter::from(flags);
    if cli.names.no_resolve
        && let Some(flag) = filter.needs_names()
    {
        return Err(refusal(
            &[flag, "--no-resolve"],
            "it is about names, and none are looked for",
        ));
    }
    if let Some(contradiction) = filter.contradiction(&events.told()) {
        return Err(Refusal(contradiction.to_string()));
    }
    match (flags.min_duration, cli.duration) {
        (Some(least), Some(whole)) if least > whole => Err(refusal(
            &["--min-duration", "--duration"],
            "tracing ends before anything has been watched for so long",
        )),
        _ => Ok(filter),
    }
}

fn refusal(flags: &[&'static str], reason: &'static str) -> Refusal {
    let contradiction = Contradiction {
        flags: flags.to_vec(),
        reason,
    };
    Refusal(contradiction.to_string())
}

impl From<&Filters> for Filter {
    fn from(flags: &Filters) -> Self {
        Self {
            ports: ends(&flags.port, &flags.from_port, &flags.to_port),
            networks: ends(&flags.ip, &flags.from_ip, &flags.to_ip),
            namespaces: ends(&flags.namespace, &flags.from_namespace, &flags.to_namespace),
            pods: ends(&flags.pod, &flags.from_pod, &flags.to_pod),
            workloads: ends(&flags.workload, &flags.from_workload, &flags.to_workload),
            service: flags.service.iter().cloned().collect(),
            selectors: Selectors {
                bare: Selector::all(&flags.selector),
                from: Selector::all(&flags.from_selector),
                to: Selector::all(&flags.to_selector),
            },
            family: match (flags.ipv4, flags.ipv6) {
                (true, _) => Some(Family::Ipv4),
                (false, true) => Some(Family::Ipv6),
                (false, false) => None,
            },
            direction: flags.direction.iter().copied().collect(),
            pid: flags.pid.iter().copied().collect(),
            comm: flags.comm.iter().cloned().collect(),
            container: flags.container.iter().cloned().collect(),
            outcome: flags.outcome.iter().copied().collect(),
            failed: flags.failed,
            established_only: flags.established_only,
            // Parsed to fit.
            min_duration_ns: flags.min_duration.map(|least| least.as_nanos() as u64),
            min_bytes: flags.min_bytes.map(|least| least.0),
        }
    }
}

fn ends<T: Clone>(bare: &[Term<T>], from: &[Term<T>], to: &[Term<T>]) -> Ends<T> {
    Ends {
        bare: bare.iter().cloned().collect(),
        from: from.iter().cloned().collect(),
        to: to.iter().cloned().collect(),
    }
}

/// Parses `--min-duration`.
pub(crate) fn min_duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(duration) if duration > super::MAX_DURATION => Err("ten years are the most".to_owned()),
        Ok(duration) => Ok(duration),
        Err(error) => Err(format!("{error}; write 100ms, 2s or 1h")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{PLAIN, parsed};
    use super::*;
    use crate::config::Config;

    #[test]
    fn what_can_never_match_is_refused_with_flag_and_reason() {
        let cases: &[(&str, &[&str])] = &[
            ("-4 -6", &["-4 and -6", "no connection is both"]),
            ("-4 --ip ::1", &["-4 and --ip", "of that family"]),
            ("-6 --from-ip 10.0.0.0/8", &["-6 and --from-ip", "of that family"]),
            ("-6 --to-ip ::ffff:10.0.0.1", &["-6 and --to-ip", "of that family"]),
            (
                "--from-ip ::1 --to-ip 127.0.0.1",
                &["--from-ip and --to-ip", "one family"],
            ),
            ("--ip 10.0.0.1 --ip !10.0.0.0/8", &["--ip", "negates"]),
            (
                "--ip 10.0.0.1 --from-ip 10.0.0.2 --to-ip 10.0.0.3",
                &["--ip and --from-ip and --to-ip"],
            ),
            ("--from-ip 10.0.0.1 --ip !10.0.0.0/31", &["--ip and --from-ip"]),
            ("--ip !0.0.0.0/0 --ip !::/0", &["--ip", "negates"]),
            ("--ip !::/0 -6", &["-6 and --ip"]),
            ("--port 80 --port !80", &["pass --port:", "negates"]),
            ("--port 80,!1-100", &["pass --port:", "negates"]),
            ("--port !0-65535", &["pass --port:", "negates"]),
            ("--from-port 80-90,!80-85,!86-90", &["--from-port", "negates"]),
            ("--port 80 --to-port 443", &["--port and --to-port", "passes both"]),
            ("--port !443 --to-port 443 --from-port 443", &["--port and --to-port"]),
            ("--pid 7,!7", &["--pid", "negates"]),
            ("--comm nginx,!n*", &["--comm", "negates"]),
            ("--comm a*b,!a*", &["--comm", "negates"]),
            ("--comm *,!*", &["--comm", "negates"]),
            ("--container 3f9a,!3f", &["--container", "negates"]),
            ("-n shop --no-resolve", &["--namespace and --no-resolve", "names"]),
            ("--no-resolve --to-pod web", &["--to-pod and --no-resolve", "names"]),
            ("-l app --no-resolve", &["--selector and --no-resolve", "names"]),
            ("-n shop,!s*", &["--namespace", "negates"]),
            ("--from-namespace shop,!shop", &["--from-namespace", "negates"]),
            ("--pod shop/web,!web", &["--pod", "negates"]),
            ("--to-workload Deployment/web,!web", &["--to-workload", "negates"]),
            ("--service web,!w*", &["--service", "negates"]),
            ("-l app=a,app=b", &["--selector", "no labels"]),
            ("-l app=a --selector !app", &["--selector", "no labels"]),
            ("--to-selector n>4,n<5", &["--to-selector", "no labels"]),
            ("--direction inbound,!inbound", &["--direction", "negates"]),
            ("--direction !inbound,!outbound", &["--direction", "negates"]),
            (
                "--direction inbound --outcome refused",
                &["--direction and --outcome", "outbound"],
            ),
            (
                "--direction !outbound --outcome connect_timeout,connect_aborted",
                &["--direction and --outcome"],
            ),
            (
                "--failed --outcome ok",
                &["--failed and --outcome", "otherwise than ok"],
            ),
            (
                "--established-only --outcome refused",
                &["--established-only and --outcome", "never connected"],
            ),
            (
                "--min-bytes 1 --outcome refused",
                &["--min-bytes and --outcome", "no payload"],
            ),
            ("--outcome ok,!ok", &["--outcome", "negates"]),
            (
                "--events open --outcome ok",
                &["--events and --outcome", "only a close"],
            ),
            (
                "--events open,update --failed",
                &["--events and --failed", "only a close"],
            ),
            (
                "--duration 1m --min-duration 61s",
                &["--min-duration and --duration", "ends before"],
            ),
        ];
        for (arguments, parts) in cases {
            let refusal = Config::new(&parsed(arguments), PLAIN).unwrap_err().to_string();
            assert!(refusal.starts_with("nothing can pass "), "{arguments}: {refusal}");
            for part in *parts {
                assert!(refusal.contains(part), "{arguments}: {part}: {refusal}");
            }
        }
    }

    #[test]
    fn what_may_match_is_accepted() {
        let cases = [
            "-4",
            "-6 --ip ::1",
            "-4 --ip ::ffff:10.0.0.1",
            "-4 --ip ::1,10.0.0.1",
            "-4 --ip !::1",
            "--ip ::1 --ip 10.0.0.1",
            "--from-ip 10.0.0.1 --to-ip 10.0.0.1",
            "--ip 10.0.0.1 --from-ip 10.0.0.2",
            "--ip 10.0.0.0/8,!10.0.0.1",
            "--ip !0.0.0.0/0",
            "--ip 0.0.0.0/0,::/0",
            "--port 0",
            "--port 65535",
            "--port 1-100,!80",
            "--port 80 --from-port 443",
            "--port 80-90 --to-port 90-100",
            "--port !0-65534",
            "--pid 1,!2",
            "--pid !1",
            "--comm n*,!nginx",
            "--comm !*",
            "--comm ab*,!a*b",
            "--container 3f,!3f9a",
            "-n shop,!shop-*",
            "-n shop --from-namespace !shop",
            "--pod web,!shop/web",
            "--workload web,!Deployment/web",
            "--service web,!shop/web",
            "-l app=a --from-selector app=b",
            "-l n>4,n<6",
            "-l app!=a,app!=b,app",
            "--direction inbound,outbound",
            "--direction inbound --outcome !refused",
            "--direction inbound --outcome refused,ok",
            "--direction inbound --failed",
            "--established-only --failed",
            "--established-only --outcome unreachable",
            "--min-bytes 0 --outcome refused",
            "--failed --outcome !refused",
            "--events update --outcome !ok",
            "--events open,close --failed",
            "--min-duration 0s",
            "--duration 1m --min-duration 60s",
        ];
        for arguments in cases {
            let config = Config::new(&parsed(arguments), PLAIN);
            assert!(config.is_ok(), "{arguments}: {config:?}");
        }
    }

    #[test]
    fn least_durations_may_be_nothing() {
        assert_eq!(min_duration("0s"), Ok(Duration::ZERO));
        assert_eq!(min_duration("100ms"), Ok(Duration::from_millis(100)));
        for (text, part) in [
            ("100", "write 100ms"),
            ("", "write"),
            ("-1s", "write"),
            ("11years", "ten years"),
        ] {
            let error = min_duration(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
