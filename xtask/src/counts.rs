//! Counts passed, failed and skipped tests by the output of test programs.

use std::fmt;
use std::iter::Sum;
use std::ops::AddAssign;
use std::process::ExitCode;

/// The number of tests by result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub passed: u64,
    pub failed: u64,
    pub skipped: u64,
}

impl Counts {
    /// Returns the counts of a single check outside of test programs.
    pub fn one(passed: bool) -> Self {
        Self {
            passed: passed.into(),
            failed: (!passed).into(),
            skipped: 0,
        }
    }

    /// Parses the result line of libtest and libtest-mimic. Returns `None` for any other line.
    fn from_result_line(line: &str) -> Option<Self> {
        let (_verdict, numbers) = line.trim_end().strip_prefix("test result: ")?.split_once(". ")?;
        Self::from_numbers(numbers, "; ", "ignored")
    }

    /// Parses the output of [`Display`](fmt::Display). A suite with checks besides its trials prints such a line last.
    fn from_own_line(line: &str) -> Option<Self> {
        Self::from_numbers(line.trim_end(), ", ", "skipped")
    }

    fn from_numbers(numbers: &str, separator: &str, skipped: &str) -> Option<Self> {
        let mut fields = numbers.split(separator);
        let mut next = |what: &str| fields.next()?.strip_suffix(what)?.trim_end().parse().ok();
        Some(Self {
            passed: next("passed")?,
            failed: next("failed")?,
            skipped: next(skipped)?,
        })
    }

    /// Returns the number of all tests.
    pub fn total(self) -> u64 {
        self.passed + self.failed + self.skipped
    }

    /// Returns the exit status of a task: failure if any test failed.
    pub fn exit_code(self) -> ExitCode {
        if self.failed == 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

/// Adds up the results of test programs that run one after the other.
#[derive(Default)]
pub struct Tally {
    finished: Counts,
    last: Counts,
}

impl Tally {
    /// Takes a line of output. A program's own counts replace those of its result line, which comes before.
    pub fn add_line(&mut self, line: &str) {
        if let Some(result) = Counts::from_result_line(line) {
            self.finished += self.last;
            self.last = result;
        } else if let Some(own) = Counts::from_own_line(line) {
            self.last = own;
        }
    }

    /// Returns the counts so far.
    pub fn counts(&self) -> Counts {
        [self.finished, self.last].into_iter().sum()
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl Sum for Counts {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |mut sum, one| {
            sum += one;
            sum
        })
    }
}

/// Every task that tests prints this line last. `.ci/run` and `.ci/full` add these lines up.
impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} passed, {} failed, {} skipped",
            self.passed, self.failed, self.skipped
        )
    }
}

#[cfg(test)]
mod tests {
    use super::{Counts, Tally};

    #[test]
    fn only_result_lines_are_parsed() {
        let cases = [
            (
                "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.00s",
                Some((3, 0, 1)),
            ),
            (
                "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.20s\r",
                Some((3, 2, 0)),
            ),
            ("test result: ok. x passed; 0 failed; 1 ignored", None),
            ("test result: ok", None),
            ("test results::parse ... ok", None),
            ("", None),
        ];
        for (line, expected) in cases {
            let expected = expected.map(|(passed, failed, skipped)| Counts {
                passed,
                failed,
                skipped,
            });
            assert_eq!(Counts::from_result_line(line), expected, "{line}");
        }
    }

    #[test]
    fn own_counts_replace_the_result_line() {
        let mut tally = Tally::default();
        let result = "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        for line in [
            "running 4 tests",
            result,
            "one check more ... FAILED",
            "3 passed, 1 failed, 1 skipped",
            "",
            result,
        ] {
            tally.add_line(line);
        }
        assert_eq!(
            tally.counts(),
            Counts {
                passed: 6,
                failed: 1,
                skipped: 2
            }
        );
    }

    #[test]
    fn counts_are_summed_and_printed() {
        let all = [
            Counts::one(true),
            Counts::one(false),
            Counts {
                passed: 4,
                failed: 0,
                skipped: 2,
            },
        ];
        assert_eq!(
            all.into_iter().sum::<Counts>().to_string(),
            "5 passed, 1 failed, 2 skipped"
        );
    }
}
