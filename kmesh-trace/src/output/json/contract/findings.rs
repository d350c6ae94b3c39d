//! The JSON contract of `finding` and `change` lines.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Serialize, Serializer};

use super::VERSION;
use super::rollup::Group;
use crate::compare::{Change, Estimate, Metric};
use crate::findings::{Finding, Severity};
use crate::record::WallTime;

/// Something that is wrong, as `explain` found it.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields, rename = "finding")]
pub struct FindingLine<'a> {
    /// The type of the line.
    #[serde(rename = "type")]
    #[schemars(extend("const" = "finding"))]
    kind: &'static str,
    /// The version of the contract.
    #[schemars(extend("const" = VERSION))]
    v: u8,
    /// The end of the watch.
    time: WallTime,
    /// The name of the rule.
    #[schemars(schema_with = "rule_schema")]
    rule: &'static str,
    /// critical: requests fail. warning: they are slow, or will fail soon. notice: something costs more than it must.
    severity: Severity,
    /// The client and the server, in the shape of a group.
    subject: Group<'a>,
    /// How often it happened: connections, segments, scans or milliseconds, by the rule.
    count: u64,
    /// The total that count is a part of.
    of: u64,
    /// When it happened first.
    first: WallTime,
    /// When it happened last.
    last: WallTime,
    /// One sentence for people that says what happens.
    text: &'a str,
    /// Sentences for people that say on whose side it is, and what supports that.
    evidence: &'a [String],
    /// The command that shows the lines.
    command: &'a str,
}

impl<'a> FindingLine<'a> {
    /// Returns the line of a finding of a watch that ended at `time`.
    pub fn new(finding: &'a Finding, time: WallTime, command: &'a str) -> Self {
        Self {
            kind: "finding",
            v: VERSION,
            time,
            rule: finding.rule,
            severity: finding.severity,
            subject: Group::from(&finding.subject),
            count: finding.count,
            of: finding.of,
            first: finding.first,
            last: finding.last,
            text: &finding.title,
            evidence: &finding.evidence,
            command,
        }
    }
}

fn rule_schema(_: &mut SchemaGenerator) -> Schema {
    let names: Vec<_> = crate::findings::RULES.iter().map(|rule| rule.name).collect();
    json_schema!({"type": "string", "enum": names})
}

impl Serialize for Severity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_unit_variant("severity", *self as u32, self.name())
    }
}

impl JsonSchema for Severity {
    fn schema_name() -> Cow<'static, str> {
        "severity".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let names: Vec<_> = Self::ALL.iter().map(|severity| severity.name()).collect();
        json_schema!({"type": "string", "enum": names})
    }
}

/// Something that differs between two captures beyond chance, as `diff` found it.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields, rename = "change")]
pub struct ChangeLine<'a> {
    /// The type of the line.
    #[serde(rename = "type")]
    #[schemars(extend("const" = "change"))]
    kind: &'static str,
    /// The version of the contract.
    #[schemars(extend("const" = VERSION))]
    v: u8,
    /// The end of the second capture.
    time: WallTime,
    /// The facts that the connections of the group share.
    group: Group<'a>,
    /// The figure that differs. connections: the group is new or gone.
    metric: Metric,
    /// The figure in the first capture.
    before: EstimateMembers,
    /// The figure in the second capture.
    after: EstimateMembers,
}

impl<'a> ChangeLine<'a> {
    /// Returns the line of a change. The second capture ended at `time`.
    pub fn new(change: &'a Change, time: WallTime) -> Self {
        Self {
            kind: "change",
            v: VERSION,
            time,
            group: Group::from(&change.group),
            metric: change.metric,
            before: change.before.into(),
            after: change.after.into(),
        }
    }
}

/// A figure of one capture. All intervals of a comparison hold together with 99.9 %.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields, rename = "estimate")]
struct EstimateMembers {
    value: f64,
    /// The lower limit of the confidence interval.
    low: f64,
    /// The upper limit of the confidence interval.
    high: f64,
    /// The number of connections, or of time windows, behind the figure.
    samples: u64,
}

impl From<Estimate> for EstimateMembers {
    fn from(
        Estimate {
            value,
            low,
            high,
            samples,
        }: Estimate,
    ) -> Self {
        Self {
            value,
            low,
            high,
            samples,
        }
    }
}

impl Serialize for Metric {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_unit_variant("metric", *self as u32, self.name())
    }
}

impl JsonSchema for Metric {
    fn schema_name() -> Cow<'static, str> {
        "metric".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let names: Vec<_> = Self::ALL.iter().map(|metric| metric.name()).collect();
        json_schema!({"type": "string", "enum": names})
    }
}
