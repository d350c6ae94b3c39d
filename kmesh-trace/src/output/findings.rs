//! The report of `explain`: the problems that were found, those that were not found, and what could not be checked.

use std::io;

use super::{Json, Sink, Stdout};
use crate::config::{Events, FindingsConfig, ReportFormat};
use crate::findings::{Abilities, Finding, Report, Watch, examine};
use crate::output::json::contract::FindingLine;
use crate::output::sanitize::one_line;
use crate::record::rfc3339::Rfc3339;
use crate::record::{ConnId, Lost, Record, RunInfo, Summary, WallTime};
use crate::shell::quoted;
use crate::track::delta::Delta;

/// The sink that collects records, and writes the report at the end of the run.
pub struct Findings {
    settings: FindingsConfig,
    watch: Watch,
    info: RunInfo,
    out: Stdout,
    summary: Option<Summary>,
}

impl Findings {
    /// Returns a sink for a run that `info` describes.
    pub fn new(settings: &FindingsConfig, abilities: Abilities, info: &RunInfo, out: Stdout) -> Self {
        Self {
            settings: settings.clone(),
            watch: Watch::new(abilities),
            info: info.clone(),
            out,
            summary: None,
        }
    }

    fn print(mut self) -> io::Result<()> {
        self.watch.end();
        let report = examine(&self.watch);
        match self.settings.format {
            ReportFormat::Text => {
                let text = self.text(&report);
                self.out.text().extend_from_slice(text.as_bytes());
                self.out.flush()
            }
            ReportFormat::Json => self.print_json(&report),
        }
    }

    fn print_json(self, report: &Report) -> io::Result<()> {
        let time = self.watch.ended.unwrap_or(WallTime(0));
        let command = |finding: &Finding| command_line(&self.settings.command, finding);
        let mut json = Json::new(Events::NONE, &self.info, self.out);
        for finding in &report.findings {
            json.line(&FindingLine::new(finding, time, &command(finding)))?;
        }
        if let Some(summary) = &self.summary {
            json.summary(summary)?;
        }
        json.flush()
    }

    fn text(&self, report: &Report) -> String {
        let looked_for: Vec<_> = report.absent.iter().map(|(what, _)| *what).collect();
        let watched = self.watched(report);
        let mut text = String::new();
        if report.is_empty {
            text += &format!("{watched}: nothing was checked\n");
        } else if report.findings.is_empty() && !report.absent.is_empty() {
            let nothing = match report.further_failures.is_empty() {
                true => "nothing wrong found",
                false => "no finding",
            };
            text += &format!("{nothing} {watched}: no {}\n", looked_for.join(", no "));
        } else if report.findings.is_empty() {
            text += &format!("nothing could be examined {watched}\n");
        } else {
            let count = report.findings.len();
            let ending = if count == 1 { "" } else { "s" };
            text += &format!("{count} finding{ending} {watched}\n");
        }
        for (finding, number) in report.findings.iter().zip(1..) {
            text += &self.paragraph(finding, number);
        }
        if !report.findings.is_empty() && !report.absent.is_empty() {
            let absent: Vec<_> = report
                .absent
                .iter()
                .map(|(what, of)| format!("{what} ({of})"))
                .collect();
            text += &format!("\nnot found (number of connections checked): {}\n", absent.join(", "));
        }
        if !report.further_failures.is_empty() {
            text += &self.further_failures(report);
        }
        if !report.unknown.is_empty() {
            text += "\nunknown:\n";
            report
                .unknown
                .iter()
                .for_each(|unknown| text += &format!("   {unknown}\n"));
        }
        text
    }

    fn paragraph(&self, finding: &Finding, number: usize) -> String {
        let mut text = format!("\n{number}  {}\n", one_line(&finding.title));
        if !finding.evidence.is_empty() {
            text += &format!("   {}\n", one_line(&finding.evidence.join(" ")));
        }
        text + &format!("   {}\n", one_line(&command_line(&self.settings.command, finding)))
    }

    /// Returns the failures that are no finding, and the command that shows them.
    fn further_failures(&self, report: &Report) -> String {
        let failures = report.further_failures.iter();
        let counts: Vec<_> = failures.map(|(kind, count)| format!("{count} {kind}")).collect();
        let text = format!("\ntoo few failures for a finding of their own: {}\n", counts.join(", "));
        if self.settings.has_filters {
            // The command does not have the filters.
            return text;
        }
        let words = self.settings.command.iter().map(String::as_str);
        let command: Vec<_> = words.chain(["--failed"]).map(quoted).collect();
        text + &format!("   {}\n", one_line(&command.join(" ")))
    }

    /// Returns what the report is about: connections, node and time.
    fn watched(&self, report: &Report) -> String {
        let node = one_line(&self.info.node);
        let plural = |count: u64| if count == 1 { "" } else { "s" };
        let of = match (report.connections, report.open) {
            _ if report.is_empty && self.settings.has_filters => format!("no connection of {node} passed the filters"),
            _ if report.is_empty => format!("no connection of {node} was seen"),
            (0, open) if open > 0 => format!("in {open} open connection{} of {node}", plural(open)),
            (closed, _) => format!("in {closed} connection{} of {node}", plural(closed)),
        };
        match self.watch.began.zip(self.watch.ended) {
            None => of,
            Some((began, ended)) => {
                let (began, ended) = (Rfc3339::new(began), Rfc3339::new(ended));
                let seconds = |time: &Rfc3339| time.time_of_day().chars().take(8).collect::<String>();
                format!("{of}, {} {} to {} UTC", began.date(), seconds(&began), seconds(&ended))
            }
        }
    }
}

impl Sink for Findings {
    fn record(&mut self, record: &Record, _: &Delta) -> io::Result<()> {
        self.watch.record(record);
        Ok(())
    }

    fn baseline(&mut self, record: &Record) -> io::Result<()> {
        self.watch.baseline(record);
        Ok(())
    }

    fn exclude(&mut self, id: ConnId) {
        self.watch.exclude(id);
    }

    fn watermark(&mut self, until: WallTime) -> io::Result<()> {
        self.watch.cover(until);
        Ok(())
    }

    fn report(&mut self, record: &Record) -> io::Result<()> {
        self.watch.report(record);
        Ok(())
    }

    fn lost(&mut self, lost: &Lost) -> io::Result<()> {
        self.watch.lost(lost);
        Ok(())
    }

    fn summary(&mut self, summary: &Summary) -> io::Result<()> {
        self.watch.summary(summary);
        self.summary = Some(summary.clone());
        Ok(())
    }

    fn finish(&mut self) -> io::Result<()> {
        let empty = Self::new(&self.settings, Abilities::default(), &self.info, Stdout::to(io::sink()));
        std::mem::replace(self, empty).print()
    }
}

/// Returns the command that shows the lines of a finding, quoted for a shell.
fn command_line(command: &[String], finding: &Finding) -> String {
    let words = command.iter().chain(finding.flags.words());
    words.map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::testing;
    use crate::record::Outcome;

    fn text_of(records: &[Record], has_filters: bool) -> String {
        let settings = FindingsConfig {
            format: ReportFormat::Text,
            command: vec!["kmesh-trace".to_owned(), "--read".to_owned(), "a b".to_owned()],
            has_filters,
        };
        let out = Stdout::to(io::sink());
        let mut findings = Findings::new(&settings, Abilities::default(), &testing::info(), out);
        records.iter().for_each(|record| findings.watch.record(record));
        findings.watch.end();
        findings.text(&examine(&findings.watch))
    }

    #[test]
    fn text_says_when_nothing_was_checked() {
        let passed = text_of(&[], true);
        assert!(passed.contains("passed the filters: nothing was checked\n"), "{passed}");
        let seen = text_of(&[], false);
        assert!(seen.contains("was seen: nothing was checked\n"), "{seen}");
    }

    #[test]
    fn text_shows_failures_below_the_thresholds() {
        let mut refused = testing::example();
        refused.outcome = Some(Outcome::Refused);
        let filtered = text_of(std::slice::from_ref(&refused), true);
        assert!(
            filtered.contains(": 1 refused\n") && !filtered.contains("--failed"),
            "{filtered}"
        );
        let text = text_of(&[refused], false);
        assert!(text.starts_with("no finding in 1 connection of "), "{text}");
        let line = "too few failures for a finding of their own: 1 refused\n   kmesh-trace --read 'a b' --failed\n";
        assert!(text.contains(line), "{text}");
        let text = text_of(&[testing::example()], false);
        assert!(text.starts_with("nothing wrong found in 1 connection of "), "{text}");
    }
}
