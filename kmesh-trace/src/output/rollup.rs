//! `-o json --rollup`: one line per group and window.

use std::io;

use super::{Json, Sink, Stdout};
use crate::config::Events;
use crate::output::json::contract::RollupLine;
use crate::record::{ConnId, Lost, Record, RunInfo, Summary, WallTime};
use crate::rollup::{Rollup, RollupSettings, Window};
use crate::track::delta::Delta;

/// The sink that writes a line for each group at the end of a window. It writes losses and summaries like [`Json`].
pub struct RollupJson {
    rollup: Rollup,
    json: Json,
}

impl RollupJson {
    /// Returns a sink for a run that `info` describes.
    pub fn new(settings: RollupSettings, info: &RunInfo, out: Stdout) -> Self {
        Self {
            rollup: Rollup::new(settings),
            json: Json::new(Events::NONE, info, out),
        }
    }

    /// Sets whether records may be late, as [`Rollup::with_late_records`] does.
    pub fn with_late_records(mut self, may_be_late: bool) -> Self {
        self.rollup = self.rollup.with_late_records(may_be_late);
        self
    }

    fn print(&mut self, windows: &[Window]) -> io::Result<()> {
        let mut rows = windows
            .iter()
            .flat_map(|window| window.rows.iter().map(move |row| RollupLine::new(window, row)));
        rows.try_for_each(|line| self.json.line(&line))
    }
}

impl Sink for RollupJson {
    fn record(&mut self, record: &Record, delta: &Delta) -> io::Result<()> {
        let windows = self.rollup.take(record, delta);
        self.print(&windows)
    }

    fn needs_deltas(&self) -> bool {
        true
    }

    fn exclude(&mut self, id: ConnId) {
        self.rollup.exclude(id);
    }

    fn watermark(&mut self, until: WallTime) -> io::Result<()> {
        let windows = self.rollup.watermark(until);
        self.print(&windows)
    }

    fn lost(&mut self, lost: &Lost) -> io::Result<()> {
        self.rollup.lost(lost.lost_records);
        self.json.lost(lost)
    }

    fn summary(&mut self, summary: &Summary) -> io::Result<()> {
        self.json.summary(summary)
    }

    fn stream_summary(&mut self, summary: &Summary, info: &RunInfo) -> io::Result<()> {
        self.json.stream_summary(summary, info)
    }

    fn set_info(&mut self, info: &RunInfo) {
        self.json.set_info(info);
    }

    fn flush(&mut self) -> io::Result<()> {
        self.json.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::testing;
    use crate::record::{Direction, Event, PacketDirection, Turns};
    use crate::rollup::{By, Key};
    use kmesh_trace_common::bucket;
    use std::time::Duration;

    fn lines(keys: &[Key], max_groups: usize, records: &[Record]) -> String {
        let settings = RollupSettings {
            by: By::new(keys),
            interval: Some(Duration::from_secs(5)),
            max_groups,
        };
        let out = testing::Shared::default();
        let sink = RollupJson::new(settings, &testing::info(), Stdout::to(out.clone()));
        testing::deliver(Box::new(sink), records);
        out.text()
    }

    #[test]
    fn window_prints_the_documented_line() {
        let expected = concat!(
            r#"{"type":"rollup","v":1,"time":"2024-09-14T08:19:30.000000000Z","#,
            r#""window_start":"2024-09-14T08:19:25.000000000Z","window_ns":5000000000,"#,
            r#""group":{"direction":"inbound","src":{"namespace":"istio-system","pod":"prometheus-5fb7f6f8d8-h9cts"},"#,
            r#""dst":{"namespace":"echo-1-27855","workload":"productpage-v1","workload_kind":"Deployment"}},"#,
            r#""open":0,"connecting":0,"opened":1,"closed":1,"failed":0,"outcomes":{"ok":1},"#,
            r#""sent_bytes":5,"received_bytes":292,"#,
            r#""duration_quantiles_ns":{"p50":2733902,"p95":2733902,"p99":2733902,"max":2733902},"#,
            r#""connect_quantiles_ns":null,"srtt_quantiles_us":{"p50":120,"p95":120,"p99":120,"max":120},"#,
            r#""response_quantiles_ns":null,"rwnd_limited":null,"sndbuf_limited":null,"#,
            r#""reset_reasons":{},"drops":{},"retransmits":0,"lost_segments":0}"#,
            "\n",
        );
        assert_eq!(lines(&[Key::Workload], 10, &[testing::in_pods()]), expected);
    }

    #[test]
    fn waits_and_limits_of_connections_add_up() {
        let connection = |cookie, [busy, rwnd, sndbuf]: [u64; 3], wait_ns| {
            let mut record = testing::in_pods();
            record.id.cookie = cookie;
            record.tcp.busy_us = Some(busy);
            record.tcp.rwnd_limited_us = Some(rwnd);
            record.tcp.sndbuf_limited_us = Some(sndbuf);
            let mut turns = Turns {
                count: 1,
                wait_ns,
                max_wait_ns: wait_ns,
                ..Turns::default()
            };
            turns.histogram[bucket(wait_ns)] = 1;
            record.turns = Some(Box::new(turns));
            record
        };
        let records = [
            connection(1, [3_000, 1_000, 0], 5_000_000),
            connection(2, [1_000, 1_000, 400], 50_000_000),
        ];
        let text = lines(&[Key::Namespace], 10, &records);
        let expected = concat!(
            r#""response_quantiles_ns":{"p50":5000000,"p95":50000000,"p99":50000000,"max":50000000},"#,
            r#""rwnd_limited":0.5,"sndbuf_limited":0.1,"#
        );
        assert!(text.contains(expected), "{text}");
    }

    #[test]
    fn reasons_are_counted_like_outcomes() {
        let aborted = |cookie, reason: &str| {
            let mut record = testing::aborted();
            record.id.cookie = cookie;
            record.reset_reason = Some(reason.into());
            record
        };
        let mut dropped = testing::dropped();
        dropped.direction = Direction::Inbound;
        let mut update = dropped.clone();
        (update.event, update.outcome) = (Event::Update, None);
        update.drops = Some(vec![testing::drops(PacketDirection::Sent, "NETFILTER_DROP", 2)]);
        let records = [
            update,
            dropped,
            aborted(1, "TCP_STATE"),
            aborted(2, "TCP_ABORT_ON_CLOSE"),
            aborted(3, "TCP_STATE"),
        ];
        let text = lines(&[Key::Namespace], 0, &records);
        let expected =
            r#""reset_reasons":{"TCP_ABORT_ON_CLOSE":1,"TCP_STATE":2},"drops":{"NETFILTER_DROP":6},"retransmits""#;
        assert!(text.contains(expected), "{text}");
    }

    #[test]
    fn joined_connection_counts_once_with_both_outcomes() {
        let text = lines(&[Key::Namespace, Key::Outcome], 9, &testing::joined()[..1]);
        let groups: Vec<_> = text.lines().filter(|line| line.contains("rollup")).collect();
        assert_eq!(groups.len(), 1, "{text}");
        let expected = [
            r#""dst":{"namespace":"echo-1-27855"},"outcome":"reset_by_peer / ok"}"#,
            r#""closed":1,"failed":1,"outcomes":{"reset_by_peer / ok":1},"#,
        ];
        assert!(expected.iter().all(|part| text.contains(part)), "{text}");
    }

    #[test]
    fn group_has_the_shape_of_a_conn_line() {
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
                &[Key::Pid],
                testing::example(),
                r#""group":{"direction":"inbound","src":{},"dst":{},"process":{"pid":4711}}"#,
            ),
            (
                &[Key::Pid, Key::Process],
                testing::example(),
                r#""process":{"comm":"python3","pid":4711}}"#,
            ),
            (&[Key::Pid], testing::refused(), r#""process":null}"#),
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
    fn hostile_process_name_is_escaped() {
        let records: Vec<_> = testing::hostile_names()
            .take(500)
            .map(|name| testing::named(&name))
            .collect();
        for line in lines(&[Key::Process], 1000, &records).lines() {
            assert!(testing::is_harmless(line), "{line:?}");
        }
    }
}
