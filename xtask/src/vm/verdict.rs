//! Judges the output of a VM. A test counts as passed only if the VM says so and finishes all steps.

use std::time::Duration;

use super::guest::Step;
use super::machine::Run;
use crate::counts::{Counts, Tally};

/// The result of a kernel.
pub struct Verdict {
    pub counts: Counts,
    /// The reasons of failed and skipped tests.
    pub notes: Vec<String>,
    pub elapsed: Duration,
}

/// The output of one step, and its status if it ended.
#[derive(Default)]
pub struct StepOutput<'a> {
    pub lines: Vec<&'a str>,
    pub status: Option<i32>,
}

/// Returns the verdict for a supported kernel: the counts of the test program.
pub fn judge_tests(run: &Run, steps: &[Step]) -> Verdict {
    let mut verdict = Verdict::new(run);
    for step in steps {
        let output = step_output(&run.lines, step.name);
        let mut tally = Tally::default();
        for (at, line) in output.lines.iter().enumerate() {
            tally.add_line(line);
            verdict
                .notes
                .extend(skipped(line).or_else(|| failed(&output.lines[at..])));
        }
        let counts = tally.counts();
        let problem = match output.status {
            None => Some(format!(
                "{} did not end; its last line: {}",
                step.name,
                output.lines.last().unwrap_or(&"none")
            )),
            Some(_) if counts.total() == 0 => Some(format!("{}: no test was counted", step.name)),
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

/// Returns the verdict for a kernel that is too old: each step must end with status 3 and a message about the kernel.
pub fn judge_refusals(run: &Run, steps: &[Step]) -> Verdict {
    let mut verdict = Verdict::new(run);
    for step in steps {
        let output = step_output(&run.lines, step.name);
        let names_the_kernel = output
            .lines
            .iter()
            .any(|line| line.to_ascii_lowercase().contains("kernel"));
        let name = step.name;
        match output.status {
            Some(3) if names_the_kernel => verdict.counts += Counts::one(true),
            Some(3) => verdict.fail(&format!("{name}: the message does not name the kernel")),
            Some(status) => verdict.fail(&format!("{name}: status {status}, expected 3")),
            None => verdict.fail(&format!("{name}: did not end")),
        }
    }
    verdict
}

impl Verdict {
    /// Returns a verdict without results. If the VM did not finish, counts that as one failure.
    pub fn new(run: &Run) -> Self {
        let mut verdict = Self {
            counts: Counts::default(),
            notes: Vec::new(),
            elapsed: run.elapsed,
        };
        if let Some(reason) = &run.killed {
            verdict.fail(&format!("the VM ended early: {reason}"));
        } else if !run.lines.iter().any(|line| line == "@vm done") {
            verdict.fail("the VM powered off before it finished all steps");
        }
        verdict
    }

    /// Counts a failure, and adds a note with the reason. `.ci/lib.sh` finds the note by its first word.
    pub fn fail(&mut self, reason: &str) {
        self.counts += Counts::one(false);
        self.notes.push(format!("failed: {reason}"));
    }
}

/// Returns a note with the name of a failed test and the start of its message, if the first line names a failed test.
/// libtest-mimic prints the name above the message.
fn failed(lines: &[&str]) -> Option<String> {
    let (first, rest) = lines.split_first()?;
    let name = first.strip_prefix("---- ")?.strip_suffix(" ----")?;
    let message = rest.iter().take_while(|line| !line.starts_with("---- ")).take(40);
    let message = message.flat_map(|line| line.chars().chain(" ".chars())).take(3000);
    Some(format!("failed: {name}: {}", message.collect::<String>().trim_end()))
}

/// Returns a note with the name of a skipped test and the reason, which the suite prints in brackets before the name.
fn skipped(line: &str) -> Option<String> {
    let (reason, name) = line
        .strip_prefix("test [skipped: ")?
        .strip_suffix("... ignored")?
        .split_once(']')?;
    Some(format!("skipped: {}: {reason}", name.trim()))
}

/// Returns the output of a step: the lines between the two marks of `init.sh`.
pub fn step_output<'a>(lines: &'a [String], step: &str) -> StepOutput<'a> {
    let begin = format!("@vm begin {step}");
    let end = format!("@vm end {step} ");
    let mut output = StepOutput::default();
    for line in lines.iter().skip_while(|line| **line != begin).skip(1) {
        if let Some(status) = line.strip_prefix(&end) {
            output.status = status.parse().ok();
            break;
        }
        if !line.is_empty() {
            output.lines.push(line);
        }
    }
    output
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{judge_refusals, judge_tests};
    use crate::counts::Counts;
    use crate::vm::guest::Step;
    use crate::vm::machine::Run;

    const RESULT: &str =
        "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 9.00s";

    /// The numbers of passed, failed and skipped tests.
    type Expected = (u64, u64, u64);

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
    fn tests_pass_only_with_result_status_and_end() {
        let cases: [(&str, &[&str], Option<&str>, Expected); 7] = [
            (
                "complete",
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
                judge_tests(&run(lines, killed), &steps()).counts,
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
    fn notes_have_names_and_reasons() {
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
            judge_tests(&run(&lines, None), &steps()).notes[..2],
            [
                "skipped: terminal::sizes: no bash",
                "failed: one::first: a.rs:7: 3 is not 4"
            ]
        );
    }

    #[test]
    fn refusal_needs_status_3_and_the_reason() {
        let cases: [(&str, &[&str], Expected); 4] = [
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
                judge_refusals(&run(lines, None), &steps()).counts,
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
