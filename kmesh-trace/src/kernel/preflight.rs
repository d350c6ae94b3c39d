//! Checks whether this system can trace, by trying it; if not, says why and what to do.

use std::fmt::Write as _;

use bytemuck::Zeroable;
use kmesh_trace_common::FilterRules;
use rustix::thread::CapabilitySet;

use crate::node;
use crate::privileges::{NEEDS, Need, OPTIONAL_NEEDS, has};

use super::loader::{BTF_PATH, KernelTypes, Options, ScanMode, StartError, start};
use super::reasons::Reasons;
use super::scanner::{FIRST_SCAN_IS_LATE, Scanner};

/// The oldest supported kernel: the first in which tracing programs can read socket cookies.
const OLDEST_KERNEL: (u32, u32) = (5, 12);

/// The reason of a RST that close() sends.
const ABORT_ON_CLOSE: &str = "TCP_ABORT_ON_CLOSE";

/// The result of checking one requirement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The name of the requirement.
    pub requirement: &'static str,
    /// A description of what was found, or the problem.
    pub result: Result<String, Missing>,
}

/// A requirement that is not met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// The problem, in one line.
    pub problem: String,
    /// The steps that solve the problem, in one line.
    pub remedy: String,
    /// Whether tracing works without it, with less information.
    pub is_optional: bool,
}

impl Finding {
    /// Returns whether this system cannot trace because of it.
    pub fn is_fatal(&self) -> bool {
        self.result.as_ref().is_err_and(|missing| !missing.is_optional)
    }
}

/// Checks all requirements. Skips a requirement that depends on an unmet one.
pub fn check() -> Vec<Finding> {
    let mut findings: Vec<Finding> = check_privileges().collect();
    let types = KernelTypes::read();
    findings.push(Finding {
        requirement: "kernel types",
        result: match &types {
            Ok(_) => Ok(format!("{BTF_PATH} has all types that records need")),
            Err(error) => Err(missing(error)),
        },
    });
    if let Ok(types) = types {
        // The smallest ring that every page size allows.
        let options = Options {
            ring_bytes: 1 << 16,
            opens: true,
            checks: 0,
            rules: Box::new(FilterRules::zeroed()),
            networks: Vec::new(),
            drops: types.reasons.has_drops(),
            turns: types.has_turns,
            rejects: types.reasons.has_resets(),
            listeners: true,
        };
        let traced = start(&types, &options).and_then(|(programs, scan_programs, _)| {
            let mode = scan_programs.mode();
            let scanner = Scanner::start().map_err(|error| StartError::Failed {
                action: "start a thread",
                reason: format!("{error:#}"),
            })?;
            let is_scanned = scanner.first_scan(scan_programs, false)?.is_some();
            Ok((programs, mode, is_scanned))
        });
        findings.push(Finding {
            requirement: "programs",
            result: match &traced {
                Ok(_) => Ok("loaded and attached".to_owned()),
                Err(error) => Err(missing(error)),
            },
        });
        if let Ok((_, mode, is_scanned)) = traced {
            let late = (!is_scanned).then(late_first_scan);
            findings.push(Finding {
                requirement: "open sockets",
                result: match late.or_else(hidden_processes).or_else(|| hidden_namespaces(mode)) {
                    Some(missing) => Err(missing),
                    None => Ok(match mode {
                        ScanMode::Descriptors => "scanned for all processes",
                        ScanMode::Namespaces => "scanned in each network namespace",
                    }
                    .to_owned()),
                },
            });
            findings.push(check_turns(types.has_turns, &release()));
            findings.extend(check_reasons(&types.reasons, types.describes_conntrack(), &release()));
        }
    }
    findings
}

/// Checks whether the kernel has the tracepoints for turns. `release` is that of the kernel.
fn check_turns(has_turns: bool, release: &str) -> Finding {
    let result = match has_turns {
        true => Ok("the time to each answer can be measured (--turns)".to_owned()),
        false => Err(Missing {
            problem: "the kernel has no tracepoints sk_data_ready and sock_send_length (--turns)".to_owned(),
            remedy: format!("use Linux 6.3 or newer; this is {release}"),
            is_optional: true,
        }),
    };
    Finding {
        requirement: "turns",
        result,
    }
}

/// Checks what the kernel says about resets and dropped packets. `release` is that of the kernel.
fn check_reasons(reasons: &Reasons, describes_conntrack: bool, release: &str) -> [Finding; 3] {
    let older = |problem: &str, version: &str| Missing {
        problem: problem.to_owned(),
        remedy: format!("use Linux {version} or newer; this is {release}"),
        is_optional: true,
    };
    let resets = match (reasons.has_resets(), reasons.has_reset(ABORT_ON_CLOSE)) {
        (true, true) => Ok("the kernel says why it sends a RST (reset_reason)".to_owned()),
        (true, false) => Err(older("the kernel does not say why close() sends a RST", "6.12")),
        (false, _) => Err(older(
            "the kernel does not say why it sends a RST (reset_reason is null)",
            "6.10",
        )),
    };
    let rejects = match reasons.has_resets() {
        true => Ok("RSTs without a socket are counted (--events reject)".to_owned()),
        false => Err(older(
            "the kernel does not report a RST without a socket (--events reject)",
            "6.10",
        )),
    };
    let drops = match (reasons.has_drops(), describes_conntrack) {
        (true, true) => Ok("dropped packets are counted, translated ones included (--drops)".to_owned()),
        (true, false) => Err(Missing {
            problem:
                "dropped packets are counted (--drops), but not those of a translated connection elsewhere than at \
                      its socket: the kernel's types do not describe conntrack"
                    .to_owned(),
            remedy: "if conntrack is a module, load it before the tool starts: modprobe nf_conntrack".to_owned(),
            is_optional: true,
        }),
        (false, _) => Err(older("the kernel does not say why it drops a packet (--drops)", "5.17")),
    };
    [("reset reasons", resets), ("rejects", rejects), ("drops", drops)]
        .map(|(requirement, result)| Finding { requirement, result })
}

/// Returns the problem if the start does not wait for the end of the first scan.
fn late_first_scan() -> Missing {
    Missing {
        problem: FIRST_SCAN_IS_LATE.to_owned(),
        remedy: "find the process that holds the lock of a socket: it does not return from a call such as send \
                 (ps -eo pid,stat,wchan:24,args shows what each process waits for)"
            .to_owned(),
        is_optional: true,
    }
}

/// Returns the problem if some processes of the machine are hidden from this one.
pub fn hidden_processes() -> Option<Missing> {
    (!node::sees_all_processes()).then(|| Missing {
        problem:
            "processes outside of this pid namespace are hidden: sockets opened before the start have no process, \
                  connections in other network namespaces have no updates, and process 1 is assumed to be in the \
                  node's network namespace"
                .to_owned(),
        remedy: "run it in the node's pid namespace (hostPID: true in a pod, --pid=host in a container)".to_owned(),
        is_optional: true,
    })
}

/// Returns the problem if scans do not reach the sockets of other network namespaces.
pub fn hidden_namespaces(mode: ScanMode) -> Option<Missing> {
    let enters = CapabilitySet::SYS_ADMIN | CapabilitySet::SYS_PTRACE;
    let cannot_enter = |need: &Need| enters.contains(need.capability) && has(need) == Some(false);
    (mode == ScanMode::Namespaces && OPTIONAL_NEEDS.iter().any(cannot_enter)).then(|| Missing {
        problem: "the kernel refuses programs that find a socket by its descriptor: connections of other network \
                  namespaces have no updates, and those opened before the start have no process"
            .to_owned(),
        remedy: "run it with CAP_SYS_ADMIN and CAP_SYS_PTRACE, with which it enters each namespace".to_owned(),
        is_optional: true,
    })
}

/// Checks each required capability.
fn check_privileges() -> impl Iterator<Item = Finding> {
    NEEDS.iter().map(|need| Finding {
        requirement: need.name,
        result: match has(need) {
            Some(true) => Ok(need.purpose.to_owned()),
            Some(false) => Err(Missing {
                problem: format!("missing; it {}", need.purpose),
                remedy: REMEDY_PRIVILEGES.to_owned(),
                is_optional: false,
            }),
            None => Ok(format!(
                "{} (the kernel does not report whether it is there)",
                need.purpose
            )),
        },
    })
}

const REMEDY_PRIVILEGES: &str = "run it as root (sudo), or with CAP_BPF and CAP_PERFMON";

/// Returns the problem behind an error of the start.
pub fn missing(error: &StartError) -> Missing {
    let (problem, remedy) = match error {
        StartError::NotPermitted => match NEEDS.iter().any(|need| has(need) == Some(false)) {
            true => ("needs CAP_BPF and CAP_PERFMON (or root)".to_owned(), REMEDY_PRIVILEGES.to_owned()),
            false => (
                "the kernel refuses eBPF although this process has the privileges".to_owned(),
                "check the container's seccomp or AppArmor profile, and kernel lockdown (/sys/kernel/security/lockdown)"
                    .to_owned(),
            ),
        },
        StartError::NoBtf(_) => (
            error.to_string(),
            "use a kernel built with CONFIG_DEBUG_INFO_BTF=y, and mount /sys (distributions do both)".to_owned(),
        ),
        StartError::NoDropReasons | StartError::NoResetReasons | StartError::NoTurnTracepoints => {
            (error.to_string(), format!("trace without it; this is {}", release()))
        }
        StartError::Btf(_) | StartError::Refused { .. } => {
            (error.to_string(), remedy_for_kernel(&release()))
        }
        StartError::Failed { .. } => {
            (error.to_string(), "check free memory, the limit of open files, and --buffer".to_owned())
        }
    };
    Missing {
        problem,
        remedy,
        is_optional: false,
    }
}

/// Returns the message about an error of the start: the problem, and what to try.
pub fn explain(error: &StartError) -> String {
    let Missing { problem, remedy, .. } = missing(error);
    format!("cannot load the tracer: {problem}\n  try: {remedy}      details: kmesh-trace check")
}

/// Returns the report of `kmesh-trace check`: a line for each finding.
pub fn report(findings: &[Finding]) -> String {
    let mut text = String::new();
    for Finding { requirement, result } in findings {
        // Writing to a string cannot fail.
        _ = match result {
            Ok(found) => writeln!(text, "ok       {requirement:<14}{found}"),
            Err(Missing {
                problem,
                remedy,
                is_optional,
            }) => {
                let mark = if *is_optional { "limited" } else { "MISSING" };
                writeln!(text, "{mark}  {requirement:<14}{problem}; {remedy}")
            }
        };
    }
    text
}

/// Returns what to do if the kernel refuses a program or lacks a type.
fn remedy_for_kernel(release: &str) -> String {
    match version(release) {
        Some(version) if version >= OLDEST_KERNEL => {
            format!(
                "report this bug with the kernel's release ({release}) and its configuration: the kernel is new enough"
            )
        }
        _ => format!(
            "use Linux {}.{} or newer; this is {release}",
            OLDEST_KERNEL.0, OLDEST_KERNEL.1
        ),
    }
}

/// Returns the first two numbers of a kernel's release, such as `6.1.0-rt`.
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
    use crate::record::ReasonNames;

    #[test]
    fn check_tells_which_reasons_the_kernel_gives() {
        let names = |names: &[&str]| {
            let names = names.iter().map(|&name| name.to_owned());
            ReasonNames::new((1..).zip(names), "")
        };
        let of = |drops: &[&str], resets: &[&str]| Reasons {
            drop: names(drops),
            reset: names(resets),
        };
        let drops = ["NO_SOCKET"];
        let resets = ["NO_SOCKET", ABORT_ON_CLOSE];
        // The starts of the lines about reset reasons, rejects and drops.
        let cases = [
            (of(&drops, &resets), true, ["ok ", "ok ", "ok "]),
            (of(&drops, &resets[..1]), true, ["limited", "ok ", "ok "]),
            (of(&drops, &[]), true, ["limited", "limited", "ok "]),
            (of(&drops, &resets), false, ["ok ", "ok ", "limited"]),
            (of(&[], &[]), true, ["limited", "limited", "limited"]),
        ];
        for (reasons, describes_conntrack, expected) in cases {
            let findings = check_reasons(&reasons, describes_conntrack, "6.1.0");
            assert!(!findings.iter().any(Finding::is_fatal));
            let text = report(&findings);
            for (line, start) in text.lines().zip(expected) {
                assert!(line.starts_with(start), "{text}");
            }
        }
        let text = report(&check_reasons(&of(&[], &[]), true, "5.15.0"));
        let expected = "limited  drops         the kernel does not say why it drops a packet (--drops); use Linux 5.17 or \
                        newer; this is 5.15.0\n";
        assert!(text.ends_with(expected), "{text}");
    }

    #[test]
    fn check_tells_whether_turns_can_be_measured() {
        let finding = check_turns(false, "6.1.0");
        assert!(!finding.is_fatal());
        let expected = "limited  turns         the kernel has no tracepoints sk_data_ready and sock_send_length \
                        (--turns); use Linux 6.3 or newer; this is 6.1.0\n";
        assert_eq!(report(&[finding]), expected);
        assert!(report(&[check_turns(true, "6.3.0")]).starts_with("ok "));
    }

    #[test]
    fn remedy_asks_for_newer_kernel_only_if_kernel_is_old() {
        for (release, is_old) in [
            ("5.10.0-28-amd64", true),
            ("5.11", true),
            ("5.12.0", false),
            ("6.1.0-rt5-amd64", false),
            ("7.0-rc1", false),
            ("unknown", true),
        ] {
            let remedy = remedy_for_kernel(release);
            assert_eq!(remedy.starts_with("use Linux 5.12 or newer"), is_old, "{remedy}");
            assert!(remedy.contains(release), "{remedy}");
        }
    }
}
