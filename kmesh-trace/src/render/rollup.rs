//! `-o json --rollup`: one line a group and window.

use std::io::{self, Write};

use super::json::write_line;
use super::{Json, Render};
use crate::record::{ConnId, Lost, Record, RunInfo, Summary, WallTime};
use crate::rollup::{Rollup, Settings, Window};
use crate::wire::RollupLine;

/// Writes a window's groups when it is over; losses and sums as [`Json`] does.
#[derive(Debug)]
pub struct RollupJson {
    rollup: Rollup,
    json: Json,
    line: Vec<u8>,
}

impl RollupJson {
    /// For a run of which `info` is true.
    pub fn new(settings: Settings, info: &RunInfo) -> Self {
        Self {
            rollup: Rollup::new(settings),
            json: Json::new(info),
            line: Vec::new(),
        }
    }

    fn print(&mut self, window: Option<&Window>, out: &mut dyn Write) -> io::Result<()> {
        let Some(window) = window else { return Ok(()) };
        window
            .rows
            .iter()
            .try_for_each(|row| write_line(&mut self.line, &RollupLine::new(window, row), out))
    }
}

impl Render for RollupJson {
    fn record(&mut self, record: &Record, out: &mut dyn Write) -> io::Result<()> {
        let window = self.rollup.take(record);
        self.print(window.as_ref(), out)
    }

    fn complete(&mut self, until: WallTime, out: &mut dyn Write) -> io::Result<()> {
        let window = self.rollup.complete(until);
        self.print(window.as_ref(), out)
    }

    fn ended(&mut self, id: ConnId) {
        self.rollup.ended(id);
    }

    fn lost(&mut self, lost: &Lost, out: &mut dyn Write) -> io::Result<()> {
        self.rollup.lost(lost.lost_records);
        self.json.lost(lost, out)
    }

    fn summary(&mut self, summary: &Summary, out: &mut dyn Write) -> io::Result<()> {
        self.json.summary(summary, out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::testing;
    use crate::rollup::{By, Key};
    use std::time::Duration;

    fn lines(keys: &[Key], max_groups: usize, records: &[Record]) -> String {
        let settings = Settings {
            by: By::new(keys),
            interval: Duration::from_secs(5),
            max_groups,
        };
        let mut render = RollupJson::new(settings, &testing::info());
        let mut out = Vec::new();
        for record in records {
            render.record(record, &mut out).unwrap();
        }
        render.complete(WallTime(i64::MAX), &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_window_is_the_contracts_line() {
        let expected = concat!(
            r#"{"type":"rollup","v":1,"time":"2024-09-14T08:19:30.000000000Z","#,
            r#""window_start":"2024-09-14T08:19:25.000000000Z","window_ns":5000000000,"#,
            r#""group":{"direction":"inbound","src":{"namespace":"istio-system","pod":"prometheus-5fb7f6f8d8-h9cts"},"#,
            r#""dst":{"namespace":"echo-1-27855","workload":"productpage-v1","workload_kind":"Deployment"}},"#,
            r#""open":0,"connecting":0,"opened":1,"closed":1,"failed":0,"outcomes":{"ok":1},"#,
            r#""sent_bytes":5,"received_bytes":292,"#,
            r#""duration_quantiles_ns":{"p50":2733902,"p95":2733902,"p99":2733902,"max":2733902},"#,
            r#""connect_quantiles_ns":null,"srtt_quantiles_us":{"p50":120,"p95":120,"p99":120,"max":120},"#,
            r#""retransmits":0,"lost_segments":0}"#,
            "\n",
        );
        assert_eq!(lines(&[Key::Workload], 10, &[testing::in_pods()]), expected);
    }

    #[test]
    fn groups_have_the_shape_of_a_connection() {
        let mut other = testing::example();
        other.id.cookie += 1;
        other.dst.set_port(1);
        let cases = [
            (
                &[Key::Service, Key::Process][..],
                testing::in_pods(),
                r#""group":{"direction":"inbound","src":{},"dst":{},"service":{"name":"productpage","namespace":"echo-1-27855","host":"productpage.echo-1-27855.svc.cluster.local"},"process":{"comm":"python3"}}"#,
            ),
            (
                &[Key::Service],
                testing::example(),
                r#""group":{"direction":"inbound","src":{},"dst":{"ip":"10.244.0.13"},"service":null}"#,
            ),
            (
                &[Key::Connection, Key::Outcome],
                testing::refused(),
                r#""group":{"id":"1000-2","direction":"outbound","src":{"ip":"fd00::1","port":40000},"dst":{"ip":"2001:db8::2","port":443},"outcome":"refused"}"#,
            ),
        ];
        for (keys, record, expected) in cases {
            let text = lines(keys, 10, &[record]);
            assert!(text.contains(expected), "{text}");
        }
        let folded = lines(&[Key::Port], 1, &[testing::example(), other]);
        let last = folded.lines().last().unwrap();
        assert!(
            last.contains(r#""group":{"direction":null,"src":{},"dst":{},"other":true}"#),
            "{folded}"
        );
    }

    #[test]
    fn hostile_names_do_no_harm() {
        let records: Vec<_> = testing::hostile_names()
            .take(500)
            .map(|name| testing::named(&name))
            .collect();
        for line in lines(&[Key::Process], 1000, &records).lines() {
            assert!(testing::is_harmless(line), "{line:?}");
        }
    }
}
