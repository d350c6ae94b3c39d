//! The texts for outcomes that people read, in `-o short` and in the table. `--outcome` accepts them, too.

use std::borrow::Cow;

use crate::record::{EndOutcomes, Outcome};

/// Returns the text of `outcome` for people.
pub fn outcome_text(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Ok => "ok",
        Outcome::Refused => "refused by peer",
        Outcome::ConnectTimeout => "connect timeout",
        Outcome::ConnectAborted => "connect aborted",
        Outcome::Unreachable => "unreachable",
        Outcome::ResetByPeer => "reset by peer",
        Outcome::ResetByLocal => "reset by local",
        Outcome::Timeout => "timeout",
        Outcome::Unknown => "unknown",
    }
}

/// Returns the text for people: `ok / reset by peer` if the outcomes of client and server differ.
pub fn end_outcomes_text(outcomes: EndOutcomes) -> Cow<'static, str> {
    match outcomes {
        EndOutcomes::Same(outcome) => outcome_text(outcome).into(),
        EndOutcomes::Different { client, server } => {
            format!("{} / {}", outcome_text(client), outcome_text(server)).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::Cli;
    use crate::filter::Filter;

    #[test]
    fn outcome_flag_accepts_every_text() {
        for &outcome in Outcome::ALL {
            let cli = Cli::try_parse_from(["kmesh-trace", "--outcome", outcome_text(outcome)]).unwrap();
            let terms = Filter::from(&cli.filters).outcome;
            assert_eq!((terms.any, terms.none), (vec![outcome], vec![]));
        }
    }
}
