//! The filter that the filter flags describe.

#[cfg(test)]
mod oracle;
mod prompt;
#[cfg(test)]
mod tests;

pub use prompt::parse_prompt_filter;

use super::error::ConfigError;
use crate::cli::{Cli, Filters, OutcomeName};
use crate::filter::{Ends, Filter, Network, Selector, Selectors, Term};
use crate::record::{Family, Outcome};

/// Returns the filter of the command line, or which flags cannot be used together.
pub(super) fn filter(cli: &Cli) -> Result<Filter, ConfigError> {
    if cli.names.no_resolve
        && let Some(flag) = name_flag(&cli.filters)
    {
        return Err(ConfigError::new(format!(
            "{flag} cannot be used with --no-resolve: it filters by names, and --no-resolve turns names off"
        )));
    }
    let filter = Filter::from(&cli.filters);
    check_family(&filter)?;
    check_outcomes(&filter)?;
    Ok(filter)
}

/// Returns the first flag that filters by Kubernetes names.
fn name_flag(flags: &Filters) -> Option<&'static str> {
    let is_given = [
        ("--namespace", !flags.namespace.is_empty()),
        ("--from-namespace", !flags.from_namespace.is_empty()),
        ("--to-namespace", !flags.to_namespace.is_empty()),
        ("--pod", !flags.pod.is_empty()),
        ("--from-pod", !flags.from_pod.is_empty()),
        ("--to-pod", !flags.to_pod.is_empty()),
        ("--workload", !flags.workload.is_empty()),
        ("--from-workload", !flags.from_workload.is_empty()),
        ("--to-workload", !flags.to_workload.is_empty()),
        ("--service", !flags.service.is_empty()),
        ("--selector", !flags.selector.is_empty()),
        ("--from-selector", !flags.from_selector.is_empty()),
        ("--to-selector", !flags.to_selector.is_empty()),
    ];
    is_given
        .into_iter()
        .find(|(_, is_given)| *is_given)
        .map(|(flag, _)| flag)
}

/// Refuses `-4` or `-6` with an address flag whose positive values are all of the other family.
fn check_family(filter: &Filter) -> Result<(), ConfigError> {
    let (family_flag, is_ipv4, other) = match filter.family {
        Some(Family::Ipv4) => ("-4", true, "IPv6"),
        Some(Family::Ipv6) => ("-6", false, "IPv4"),
        None => return Ok(()),
    };
    let is_other = |network: &Network| network.0.addr().is_ipv4() != is_ipv4;
    let Ends { bare, from, to } = &filter.networks;
    for (flag, terms) in [("--ip", bare), ("--from-ip", from), ("--to-ip", to)] {
        if let Some(network) = terms.any.first()
            && terms.any.iter().all(is_other)
        {
            return Err(ConfigError::new(format!(
                "{flag} {} cannot be used with {family_flag}: it is an {other} address",
                network.0
            )));
        }
    }
    Ok(())
}

/// Refuses `--failed` or `--established-only` with outcomes that no such connection has.
fn check_outcomes(filter: &Filter) -> Result<(), ConfigError> {
    let outcomes = &filter.outcome.any;
    if outcomes.is_empty() {
        return Ok(());
    }
    if filter.failed && outcomes.iter().all(|&outcome| outcome == Outcome::Ok) {
        return Err(ConfigError::new(
            "--outcome ok cannot be used with --failed, which matches every outcome except ok",
        ));
    }
    let is_of_attempt = |outcome: &Outcome| {
        matches!(
            outcome,
            Outcome::Refused | Outcome::ConnectTimeout | Outcome::ConnectAborted
        )
    };
    match outcomes.first() {
        Some(outcome) if filter.established_only && outcomes.iter().all(is_of_attempt) => {
            Err(ConfigError::new(format!(
                "--outcome {} cannot be used with --established-only: only an attempt that never connected has this \
                 outcome",
                outcome.name()
            )))
        }
        _ => Ok(()),
    }
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
            outcome: flags.outcome.iter().flat_map(outcomes).collect(),
            failed: flags.failed,
            connecting: flags.connecting,
            established_only: flags.established_only,
            // The parser limits the time to ten years, whose nanoseconds fit into 64 bits.
            min_duration_ns: flags.min_duration.map(|min| min.as_nanos() as u64),
            min_bytes: flags.min_bytes.map(|min| min.0),
        }
    }
}

/// Returns a term for each outcome that the name of an outcome means.
fn outcomes(term: &Term<OutcomeName>) -> impl Iterator<Item = Term<Outcome>> {
    let Term { negated, value } = *term;
    value.0.iter().map(move |&value| Term { negated, value })
}

fn ends<T: Clone>(bare: &[Term<T>], from: &[Term<T>], to: &[Term<T>]) -> Ends<T> {
    Ends {
        bare: bare.iter().cloned().collect(),
        from: from.iter().cloned().collect(),
        to: to.iter().cloned().collect(),
    }
}
