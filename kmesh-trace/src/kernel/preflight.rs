//! Can this system trace, and if not, why not and what to do: found by trying, not by version numbers.

use std::fmt::Write as _;

use bytemuck::Zeroable;
use kmesh_trace_common::FilterRules;

use crate::names::local::node;
use crate::privileges::{NEEDS, has};

use std::ops::ControlFlow;

use super::loader::{BTF_PATH, Options, StartError, Types, start};
use super::scanner;

/// The kernels this is made for: the first with cookies of sockets for tracing programs.
const FLOOR: (u32, u32) = (5, 12);

/// One requirement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What is required.
    pub what: &'static str,
    /// What was found; or what is missing, and what to do.
    pub found: Result<String, Missing>,
}

/// A requirement that is not met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// In one line.
    pub problem: String,
    /// In one line.
    pub remedy: String,
    /// Whether tracing goes on without it, and shows less.
    pub is_optional: bool,
}

impl Finding {
    /// Whether this system cannot trace for it.
    pub fn is_fatal(&self) -> bool {
        self.found.as_ref().is_err_and(|missing| !missing.is_optional)
    }
}

/// Goes through all requirements, as far as each can be tried without the one before.
pub fn check() -> Vec<Finding> {
    let mut findings: Vec<Finding> = privileges().collect();
    let types = Types::read();
    findings.push(Finding {
        what: "kernel types",
        found: match &types {
            Ok(_) => Ok(format!("{BTF_PATH} has all that records need")),
            Err(error) => Err(missing(error)),
        },
    });
    if let Ok(types) = types {
        // The least ring that every page size allows.
        let options = Options {
            ring_bytes: 1 << 16,
            opens: true,
            checks: 0,
            rules: Box::new(FilterRules::zeroed()),
            networks: Vec::new(),
        };
        let traced = start(&types, &options).and_then(|(kernel, mut walker)| {
            scanner::scan(&mut walker, None, |_| ControlFlow::Continue(()))?;
            Ok(kernel)
        });
        findings.push(Finding {
            what: "programs",
            found: match &traced {
                Ok(_) => Ok("loaded and attached".to_owned()),
                Err(error) => Err(missing(error)),
            },
        });
        if traced.is_ok() {
            findings.push(Finding {
                what: "open sockets",
                found: match hidden_processes() {
                    None => Ok("scanned, those of all processes".to_owned()),
                    Some(missing) => Err(missing),
                },
            });
        }
    }
    findings
}

/// Returns what is not seen where some processes of the machine are hidden from this one, and what to do.
pub fn hidden_processes() -> Option<Missing> {
    (!node::sees_all_processes()).then(|| Missing {
        problem:
            "processes outside of this pid namespace are hidden: their sockets from before the start have no process, \
                  their open connections no updates outside of this network namespace, and process 1 is taken to be in the node's network namespace"
                .to_owned(),
        remedy: "run it in the node's pid namespace (hostPID: true in a pod, --pid=host in a container)".to_owned(),
        is_optional: true,
    })
}

/// One a capability.
fn privileges() -> impl Iterator<Item = Finding> {
    NEEDS.iter().map(|need| Finding {
        what: need.name,
        found: match has(need) {
            Some(true) => Ok(need.purpose.to_owned()),
            Some(false) => Err(Missing {
                problem: format!("is missing; it {}", need.purpose),
                remedy: REMEDY_PRIVILEGES.to_owned(),
                is_optional: false,
            }),
            None => Ok(format!(
                "{} (whether it is there, the kernel does not tell)",
                need.purpose
            )),
        },
    })
}

const REMEDY_PRIVILEGES: &str = "run it as root (sudo), or with CAP_BPF and CAP_PERFMON";

/// What is missing when the tracer did not start, and what to do.
pub fn missing(error: &StartError) -> Missing {
    let (problem, remedy) = match error {
        StartError::NotPermitted => match NEEDS.iter().any(|need| has(need) == Some(false)) {
            true => ("needs CAP_BPF and CAP_PERFMON (or root)".to_owned(), REMEDY_PRIVILEGES.to_owned()),
            false => (
                "the kernel refuses eBPF although the privileges are there".to_owned(),
                "look for a container's seccomp or AppArmor profile, or kernel lockdown (/sys/kernel/security/lockdown)"
                    .to_owned(),
            ),
        },
        StartError::NoBtf(_) => (
            error.to_string(),
            "a kernel built with CONFIG_DEBUG_INFO_BTF=y is needed, and /sys mounted (distributions have both)".to_owned(),
        ),
        StartError::Btf(_) | StartError::Refused { .. } => {
            (error.to_string(), remedy_for_kernel(&release()))
        }
        StartError::Failed { .. } => {
            (error.to_string(), "see whether memory, descriptors and the size of --buffer suffice".to_owned())
        }
    };
    Missing {
        problem,
        remedy,
        is_optional: false,
    }
}

/// Why tracing cannot start, in two lines.
pub fn explain(error: &StartError) -> String {
    let Missing { problem, remedy, .. } = missing(error);
    format!("cannot load the tracer: {problem}\n  try: {remedy}      details: kmesh-trace check")
}

/// The findings, a line each.
pub fn report(findings: &[Finding]) -> String {
    let mut text = String::new();
    for Finding { what, found } in findings {
        // Writing to a string cannot fail.
        _ = match found {
            Ok(found) => writeln!(text, "ok       {what:<14}{found}"),
            Err(Missing {
                problem,
                remedy,
                is_optional,
            }) => {
                let mark = if *is_optional { "limited" } else { "MISSING" };
                writeln!(text, "{mark}  {what:<14}{problem}; {remedy}")
            }
        };
    }
    text
}

/// What to do where this kernel's programs or types are not as they must be.
fn remedy_for_kernel(release: &str) -> String {
    match version(release) {
        Some(version) if version >= FLOOR => {
            format!("report this with the kernel's release ({release}) and its configuration: it is new enough")
        }
        _ => format!("a kernel from {}.{} on is needed; this is {release}", FLOOR.0, FLOOR.1),
    }
}

/// The first two numbers of a kernel's release, such as `6.1.0-rt`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_old_kernel_is_blamed_for_its_age() {
        for (release, is_old) in [
            ("5.10.0-28-amd64", true),
            ("5.11", true),
            ("5.12.0", false),
            ("6.1.0-rt5-amd64", false),
            ("7.0-rc1", false),
            ("unknown", true),
        ] {
            let remedy = remedy_for_kernel(release);
            assert_eq!(
                remedy.starts_with("a kernel from 5.12 on is needed"),
                is_old,
                "{remedy}"
            );
            assert!(remedy.contains(release), "{remedy}");
        }
    }
}
