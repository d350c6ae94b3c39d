//! The filter that the filter flags describe, and checks of flags that contradict each other.

use std::time::Duration;

use crate::cli::{Cli, Filters};
use crate::filter::{Ends, Filter, Network, Selector, Selectors, Term};
use crate::record::Family;

use super::Refusal;

/// Checks the filter flags of `cli` and returns the filter.
pub(super) fn filter(cli: &Cli) -> Result<Filter, Refusal> {
    let filter = Filter::from(&cli.filters);
    if cli.names.no_resolve
        && let Some(flag) = filter.needs_names()
    {
        return Err(Refusal(format!(
            "{flag} cannot be used with --no-resolve: it filters by names, and --no-resolve turns names off"
        )));
    }
    check_family(&filter)?;
    Ok(filter)
}

/// Refuses `-4` and `-6` with a flag whose positive values are all of the other family.
pub(super) fn check_family(filter: &Filter) -> Result<(), Refusal> {
    let (family, other) = match filter.family {
        Some(Family::Ipv4) => ("-4", "IPv6"),
        Some(Family::Ipv6) => ("-6", "IPv4"),
        None => return Ok(()),
    };
    let is_other = |network: &Network| network.0.addr().is_ipv4() != (filter.family == Some(Family::Ipv4));
    let Ends { bare, from, to } = &filter.networks;
    for (flag, terms) in [("--ip", bare), ("--from-ip", from), ("--to-ip", to)] {
        if let Some(network) = terms.any.first()
            && terms.any.iter().all(is_other)
        {
            return Err(Refusal(format!(
                "{flag} {} cannot be used with {family}: it is an {other} address",
                network.0
            )));
        }
    }
    Ok(())
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
            ("-n shop --no-resolve", &["--namespace", "--no-resolve", "by names"]),
            ("--no-resolve --to-pod web", &["--to-pod", "--no-resolve", "by names"]),
            ("-l app --no-resolve", &["--selector", "--no-resolve", "by names"]),
            (
                "--service !web --no-resolve",
                &["--service", "--no-resolve", "by names"],
            ),
        ];
        for (arguments, parts) in cases {
            let refusal = Config::new(&parsed(arguments), PLAIN).unwrap_err().to_string();
            for part in *parts {
                assert!(refusal.contains(part), "{arguments}: {part}: {refusal}");
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
