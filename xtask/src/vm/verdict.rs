//! What a machine's lines mean. Nothing counts as passed unless the machine said so and lived to its end.

use std::time::Duration;

use super::guest::Step;
use super::machine::Run;
use crate::counts::{Counts, Tally};

/// What came of a kernel.
pub struct Verdict {
    pub counts: Counts,
    /// What a person wants to know about failures.
    pub notes: Vec<String>,
    pub elapsed: Duration,
}

/// What one step said, and how it ended, if it did.
#[derive(Default)]
pub struct Said<'a> {
    pub lines: Vec<&'a str>,
    pub status: Option<i32>,
}

/// For a kernel that can trace: what the test program counted.
pub fn of_tests(run: &Run, steps: &[Step]) -> Verdict {
    let mut verdict = Verdict::begin(run);
    for step in steps {
        let said = said(&run.lines, step.name);
        let mut tally = Tally::default();
        for (at, line) in said.lines.iter().enumerate() {
            tally.see(line);
            verdict
                .notes
                .extend(skipped(line).or_else(|| failed(&said.lines[at..])));
        }
        let counts = tally.counts();
        let problem = match said.status {
            None => Some(format!(
                "{} did not end; its last line: {}",
                step.name,
                said.lines.last().unwrap_or(&"none")
            )),
            Some(_) if counts.total() == 0 => Some(format!("{}: not one test was counted", step.name)),
            Some(status) if status != 0 && counts.failed == 0 => Some(format!("{}: status {status}", step.name)),
            Some(_) => None,
        };
        verdict.counts += counts;
        if let Some(problem) = problem {
            verdict.fail(&problem);
        }
    }
    verdict
}

/// For a kernel that is too old: each step must end with status 3 and say that it is the kernel.
pub fn of_refusals(run: &Run, steps: &[Step]) -> Verdict {
    let mut verdict = Verdict::begin(run);
    for step in steps {
        let said = said(&run.lines, step.name);
        let names_the_kernel = said
            .lines
            .iter()
            .any(|line| line.to_ascii_lowercase().contains("kernel"));
        let name = step.name;
        match said.status {
            Some(3) if names_the_kernel => verdict.counts += Counts::one(true),
            Some(3) => verdict.fail(&format!("{name}: does not say that it is the kernel")),
            Some(status) => verdict.fail(&format!("{name}: status {status}, expected 3")),
            None => verdict.fail(&format!("{name}: did not end")),
        }
    }
    verdict
}

impl Verdict {
    /// What the machine itself is worth: nothing, or a failure where it did not live to its end.
    pub fn begin(run: &Run) -> Self {
        let mut verdict = Self {
            counts: Counts::default(),
            notes: Vec::new(),
            elapsed: run.elapsed,
        };
        if let Some(reason) = &run.killed {
            verdict.fail(&format!("the machine ended early: {reason}"));
        } else if !run.lines.iter().any(|line| line == "@vm done") {
            verdict.fail("the machine went off before its job was done");
        }
        verdict
    }

    /// Counts a failure, and notes why. `.ci/lib.sh` finds the note by its first word.
    pub fn fail(&mut self, why: &str) {
        self.counts += Counts::one(false);
        self.notes.push(format!("failed: {why}"));
    }
}

/// Who failed, and the beginning of why, where the first of these lines names a failure. libtest-mimic names failures above
/// what they said.
fn failed(lines: &[&str]) -> Option<String> {
    let (first, rest) = lines.split_first()?;
    let name = first.strip_prefix("---- ")?.strip_suffix(" ----")?;
    let why = rest.iter().take_while(|line| !line.starts_with("---- ")).take(3);
    let why = why.flat_map(|line| line.chars().chain(" ".chars())).take(400);
    Some(format!("failed: {name}: {}", why.collect::<String>().trim_end()))
}

/// Who was skipped and why: the suite puts the reason in brackets before the name.
fn skipped(line: &str) -> Option<String> {
    let (reason, name) = line
        .strip_prefix("test [skipped: ")?
        .strip_suffix("... ignored")?
        .split_once(']')?;
    Some(format!("skipped: {}: {reason}", name.trim()))
}

/// The lines between the two that `init.sh` puts around a step.
pub fn said<'a>(lines: &'a [String], step: &str) -> Said<'a> {
    let begin = format!("@vm begin {step}");
    let end = format!("@vm end {step} ");
    let mut said = Said::default();
    for line in lines.iter().skip_while(|line| **line != begin).skip(1) {
        if let Some(status) = line.strip_prefix(&end) {
            said.status = status.parse().ok();
            break;
        }
        if !line.is_empty() {
            said.lines.push(line);
        }
    }
    said
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{of_refusals, of_tests};
    use crate::counts::Counts;
    use crate::vm::guest::Step;
    use crate::vm::machine::Run;

    const RESULT: &str =
        "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 9.00s";

    /// Passed, failed, skipped.
    type Want = (u64, u64, u64);

    fn run(lines: &[&str], killed: Option<&str>) -> Run {
        let lines = lines.iter().map(|&line| line.to_owned()).collect();
        Run {
            lines,
            killed: killed.map(str::to_owned),
            elapsed: Duration::ZERO,
        }
    }

    fn steps() -> [Step; 1] {
        [Step {
            name: "x",
            command: Vec::new(),
        }]
    }

    #[test]
    fn tests_pass_only_when_all_was_said() {
        let cases: [(&str, &[&str], Option<&str>, Want); 7] = [
            (
                "all well",
                &["@vm begin x", RESULT, "@vm end x 0", "@vm done"],
                None,
                (3, 0, 1),
            ),
            (
                "result outside the step",
                &[RESULT, "@vm begin x", "@vm end x 0", "@vm done"],
                None,
                (0, 1, 0),
            ),
            (
                "bad status",
                &["@vm begin x", RESULT, "@vm end x 101", "@vm done"],
                None,
                (3, 1, 1),
            ),
            ("no status", &["@vm begin x", RESULT], None, (3, 2, 1)),
            (
                "panic on the way down",
                &["@vm begin x", RESULT, "@vm end x 0"],
                Some("Kernel panic"),
                (3, 1, 1),
            ),
            (
                "no test ran",
                &["@vm begin x", "@vm end x 0", "@vm done"],
                None,
                (0, 1, 0),
            ),
            ("nothing at all", &[], Some("still running"), (0, 2, 0)),
        ];
        for (name, lines, killed, (passed, failed, skipped)) in cases {
            assert_eq!(
                of_tests(&run(lines, killed), &steps()).counts,
                Counts {
                    passed,
                    failed,
                    skipped
                },
                "{name}"
            );
        }
    }

    #[test]
    fn notes_say_who_failed_and_why() {
        let lines = [
            "@vm begin x",
            "test [skipped: no bash] terminal::sizes ... ignored",
            "failures:",
            "---- one::first ----",
            "a.rs:7:",
            "3 is not 4",
            "",
            "---- two::second ----",
            "gone",
            RESULT,
            "@vm end x 101",
            "@vm done",
        ];
        assert_eq!(
            of_tests(&run(&lines, None), &steps()).notes[..2],
            [
                "skipped: terminal::sizes: no bash",
                "failed: one::first: a.rs:7: 3 is not 4"
            ]
        );
    }

    #[test]
    fn a_refusal_has_its_status_and_its_reason() {
        let cases: [(&str, &[&str], Want); 4] = [
            (
                "refused",
                &["@vm begin x", "needs a kernel from 5.12 on", "@vm end x 3", "@vm done"],
                (1, 0, 0),
            ),
            (
                "no reason",
                &["@vm begin x", "cannot", "@vm end x 3", "@vm done"],
                (0, 1, 0),
            ),
            (
                "another status",
                &["@vm begin x", "kernel", "@vm end x 1", "@vm done"],
                (0, 1, 0),
            ),
            ("no end", &["@vm begin x", "kernel", "@vm done"], (0, 1, 0)),
        ];
        for (name, lines, (passed, failed, skipped)) in cases {
            assert_eq!(
                of_refusals(&run(lines, None), &steps()).counts,
                Counts {
                    passed,
                    failed,
                    skipped
                },
                "{name}"
            );
        }
    }
}
