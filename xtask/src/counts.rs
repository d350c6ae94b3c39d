//! How many tests passed, failed and were skipped, as test programs say it themselves.

use std::fmt;
use std::iter::Sum;
use std::ops::AddAssign;
use std::process::ExitCode;

/// The sums over any number of test programs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub passed: u64,
    pub failed: u64,
    pub skipped: u64,
}

impl Counts {
    /// A single check that did not come from a test program.
    pub fn one(passed: bool) -> Self {
        Self {
            passed: passed.into(),
            failed: (!passed).into(),
            skipped: 0,
        }
    }

    /// Reads the line that ends the output of libtest and libtest-mimic; `None` for every other line.
    pub fn from_result_line(line: &str) -> Option<Self> {
        let (_verdict, numbers) = line.trim_end().strip_prefix("test result: ")?.split_once(". ")?;
        let mut fields = numbers.split("; ");
        let mut next = |what: &str| fields.next()?.strip_suffix(what)?.trim_end().parse().ok();
        Some(Self {
            passed: next("passed")?,
            failed: next("failed")?,
            skipped: next("ignored")?,
        })
    }

    /// How many there were in all.
    pub fn total(self) -> u64 {
        self.passed + self.failed + self.skipped
    }

    /// A task's exit status: a failure among them fails it.
    pub fn exit_code(self) -> ExitCode {
        if self.failed == 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
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

/// The plain line that ends every task which tests; `.ci/run` adds these up.
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
    use super::Counts;

    #[test]
    fn reads_result_lines_and_nothing_else() {
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
        for (line, want) in cases {
            let want = want.map(|(passed, failed, skipped)| Counts {
                passed,
                failed,
                skipped,
            });
            assert_eq!(Counts::from_result_line(line), want, "{line}");
        }
    }

    #[test]
    fn sums_and_prints() {
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
