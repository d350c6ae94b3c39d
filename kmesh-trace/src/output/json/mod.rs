//! `-o json`: one JSON object per line. [`crate::output::json::contract`] defines the objects.

#[cfg(test)]
mod compatibility;
mod writer;

pub mod contract;
pub mod schema;

use super::{Sink, Stdout};
use crate::config::Events;
use crate::output::json::contract::{ConnLine, ListenerLine, LostLine, PairLine, RejectLine, SummaryLine};
use crate::record::{Lost, Record, RunInfo, Subject, Summary};
use crate::track::delta::Delta;
use serde::Serialize;
use std::io;

/// The sink that writes a JSON line for each record, loss and summary.
pub struct Json {
    events: Events,
    info: RunInfo,
    out: Stdout,
}

impl Json {
    /// Returns a sink that prints `events` of a run that `info` describes.
    pub fn new(events: Events, info: &RunInfo, out: Stdout) -> Self {
        Self {
            events,
            info: info.clone(),
            out,
        }
    }

    pub(super) fn line(&mut self, value: &impl Serialize) -> io::Result<()> {
        append_line(self.out.text(), value)?;
        self.out.appended()
    }
}

impl Sink for Json {
    fn record(&mut self, record: &Record, _: &Delta) -> io::Result<()> {
        match (self.events.has(record.event), &record.joined) {
            (false, _) => Ok(()),
            (true, None) => self.line(&ConnLine::new(record)),
            (true, Some(_)) => self.line(&PairLine::new(record)),
        }
    }

    fn report(&mut self, record: &Record) -> io::Result<()> {
        match record.subject {
            _ if !self.events.has_subject(record.subject) => Ok(()),
            Subject::Connection => Ok(()),
            Subject::Reject(count) => self.line(&RejectLine::new(record, count)),
            Subject::Listener(queue) => self.line(&ListenerLine::new(record, queue)),
        }
    }

    fn lost(&mut self, lost: &Lost) -> io::Result<()> {
        self.line(&LostLine::from(lost))
    }

    fn summary(&mut self, summary: &Summary) -> io::Result<()> {
        append_line(self.out.text(), &SummaryLine::new(summary, &self.info))
    }

    fn stream_summary(&mut self, summary: &Summary, info: &RunInfo) -> io::Result<()> {
        append_line(self.out.text(), &SummaryLine::new(summary, info))
    }

    fn set_info(&mut self, info: &RunInfo) {
        self.info.clone_from(info);
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Appends `value` as a line of JSON. On an error, `text` is unchanged.
pub fn append_line(text: &mut Vec<u8>, value: &impl Serialize) -> io::Result<()> {
    let length = text.len();
    writer::append(text, value).inspect_err(|_| text.truncate(length))?;
    text.push(b'\n');
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing;
    use super::*;
    use crate::record::{Outcome, TcpState};
    use serde_json::Value;

    fn line(write: impl FnOnce(&mut Json) -> io::Result<()>) -> String {
        let out = testing::Shared::default();
        let mut json = Json::new(testing::ALL_EVENTS, &testing::info(), Stdout::to(out.clone()));
        write(&mut json).unwrap();
        json.flush().unwrap();
        out.text()
    }

    fn conn(record: &Record) -> String {
        line(|json| json.record(record, &Delta::default()))
    }

    #[test]
    fn example_record_prints_the_documented_line() {
        let expected = concat!(
            r#"{"type":"conn","v":1,"id":"5f2c81-1","event":"close","time":"2024-09-14T08:19:26.552709932Z","#,
            r#""start":"2024-09-14T08:19:26.549976030Z","duration_ns":2733902,"connect_ns":null,"preexisting":false,"#,
            r#""observed_ns":2733902,"node":"worker-1","direction":"inbound","protocol":"tcp","family":"ipv4","#,
            r#""src":{"ip":"10.244.0.17","port":51842},"dst":{"ip":"10.244.0.13","port":9080},"#,
            r#""service":null,"original_dst":null,"process":{"pid":4711,"comm":"python3","by":"close"},"#,
            r#""local":{"netns":4026532291,"cgroup_id":8123,"container_id":null,"container":null},"#,
            r#""sent_bytes":5,"received_bytes":292,"undelivered_bytes":0,"#,
            r#""established":true,"outcome":"ok","errno":null,"closed_by":"peer","#,
            r#""reset_reason":null,"drops":null,"turns":null,"security_policy":"unknown","#,
            r#""tcp":{"state":"CLOSE","old_state":"LAST_ACK","srtt_us":120,"rtt_min_us":98,"mss":1448,"#,
            r#""snd_cwnd":10,"snd_ssthresh":2147483647,"rcv_nxt":0,"snd_nxt":0,"snd_una":0,"ecn_flags":0,"#,
            r#""rate_delivered":0,"rate_interval_us":0,"packets_out":0,"retrans_out":0,"total_retrans":0,"#,
            r#""segs_in":6,"data_segs_in":1,"segs_out":5,"data_segs_out":1,"lost":0,"lost_out":0,"sacked_out":0,"#,
            r#""bytes_received":293,"bytes_acked":6,"dsack_dups":0,"delivered":2,"delivered_ce":0,"#,
            r#""icsk_retransmits":0,"bytes_sent":5,"bytes_retrans":0,"rcv_ooopack":0,"reord_seen":0,"snd_wnd":0,"#,
            r#""rcv_wnd":0,"rcv_rtt_us":null,"rttvar_us":0,"rto_us":0,"pmtu":0,"congestion":null,"total_rto":0,"#,
            r#""total_rto_ms":0,"busy_us":0,"rwnd_limited_us":0,"sndbuf_limited_us":0,"last_send_ms":null,"#,
            r#""last_receive_ms":null}}"#,
            "\n",
        );
        assert_eq!(conn(&testing::example()), expected);
    }

    #[test]
    fn names_stand_in_their_members() {
        let line = conn(&testing::in_pods());
        let expected = concat!(
            r#""src":{"ip":"10.244.0.17","port":51842,"namespace":"istio-system","pod":"prometheus-5fb7f6f8d8-h9cts","#,
            r#""pod_uid":"uid-of-prometheus-5fb7f6f8d8-h9cts","workload":null,"workload_kind":null,"#,
            r#""service_account":null,"node":"worker-1","host_network":null,"labels":null},"#,
            r#""dst":{"ip":"10.244.0.13","port":9080,"namespace":"echo-1-27855","#,
            r#""pod":"productpage-v1-8499c849b9-bz9t9","pod_uid":"uid-of-productpage-v1-8499c849b9-bz9t9","#,
            r#""workload":"productpage-v1","workload_kind":"Deployment","service_account":"productpage-v1","#,
            r#""node":"worker-1","host_network":false,"labels":{"app":"productpage","version":"v1"}},"#,
            r#""service":{"name":"productpage","namespace":"echo-1-27855","#,
            r#""host":"productpage.echo-1-27855.svc.cluster.local","by":"target_port","ambiguous":true},"#,
            r#""original_dst":{"ip":"10.96.0.9","port":80},"process":"#,
        );
        assert!(line.contains(expected), "{line}");
        assert!(line.contains(r#""container":"productpage"}"#), "{line}");
        let line = conn(&testing::from_a_node());
        let expected = concat!(
            r#""src":{"ip":"10.244.0.17","port":51842,"node":"worker-2"},"#,
            r#""dst":{"ip":"10.244.0.13","port":9080},"#,
        );
        assert!(line.contains(expected), "{line}");
    }

    #[test]
    fn members_have_their_values() {
        let cases = [
            ("no process", testing::refused(), "/process", Value::Null),
            (
                "IPv6 without brackets",
                testing::refused(),
                "/dst/ip",
                "2001:db8::2".into(),
            ),
            ("family", testing::refused(), "/family", "ipv6".into()),
            ("direction", testing::refused(), "/direction", "outbound".into()),
            ("outcome", testing::refused(), "/outcome", "refused".into()),
            ("errno by name", testing::refused(), "/errno", "ECONNREFUSED".into()),
            ("unknown cgroup", testing::refused(), "/local/cgroup_id", Value::Null),
            ("second attempt", testing::refused(), "/id", "1000-2".into()),
            ("no RTT sample", testing::refused(), "/tcp/srtt_us", Value::Null),
            ("preexisting", testing::preexisting(), "/preexisting", true.into()),
            ("no start", testing::preexisting(), "/start", Value::Null),
            ("no duration", testing::preexisting(), "/duration_ns", Value::Null),
            (
                "observed duration",
                testing::preexisting(),
                "/observed_ns",
                5_000_000_000_u64.into(),
            ),
            ("closed by neither", testing::preexisting(), "/closed_by", Value::Null),
            ("no old state", testing::preexisting(), "/tcp/old_state", Value::Null),
            ("64 bits", testing::largest(), "/sent_bytes", u64::MAX.into()),
            (
                "an errno without a name",
                testing::largest(),
                "/errno",
                "E4294967295".into(),
            ),
            ("HBONE", testing::largest(), "/security_policy", "mutual_tls".into()),
            ("connect time", testing::largest(), "/connect_ns", u64::MAX.into()),
            (
                "a name of 16 bytes",
                testing::largest(),
                "/process/comm",
                "zzzzzzzzzzzzzzzz".into(),
            ),
        ];
        for (name, record, pointer, expected) in cases {
            let line: Value = serde_json::from_str(&conn(&record)).unwrap();
            assert_eq!(line.pointer(pointer), Some(&expected), "{name}");
        }
    }

    #[test]
    fn only_server_port_15008_is_hbone() {
        let mut record = testing::example();
        record.src.set_port(15008);
        assert!(conn(&record).contains(r#""security_policy":"unknown""#));
    }

    #[test]
    fn address_has_no_interface() {
        let mut record = testing::refused();
        record.src = std::net::SocketAddrV6::new("fe80::1".parse().unwrap(), 1, 0, 3).into();
        assert!(conn(&record).contains(r#""src":{"ip":"fe80::1","port":1}"#));
    }

    #[test]
    fn outcomes_and_states_have_documented_names() {
        let outcomes = [
            "ok",
            "refused",
            "connect_timeout",
            "connect_aborted",
            "unreachable",
            "reset_by_peer",
            "reset_by_local",
            "timeout",
            "unknown",
        ];
        assert_eq!(
            Outcome::ALL.iter().map(|outcome| outcome.name()).collect::<Vec<_>>(),
            outcomes
        );
        for (outcome, name) in Outcome::ALL.iter().zip(outcomes) {
            let record = Record {
                outcome: Some(*outcome),
                ..testing::example()
            };
            assert!(conn(&record).contains(&format!(r#""outcome":"{name}""#)));
        }
        for state in TcpState::ALL {
            let mut record = testing::example();
            record.tcp.old_state = Some(*state);
            assert!(conn(&record).contains(&format!(r#""old_state":"{}""#, state.name())));
        }
    }

    #[test]
    fn rejects_and_listeners_print_the_documented_lines() {
        let expected = [
            concat!(
                r#"{"type":"reject","v":1,"time":"2024-09-14T08:19:26.552709932Z","src":{"ip":"10.244.0.17","#,
                r#""namespace":"istio-system","pod":"prometheus-5fb7f6f8d8-h9cts","#,
                r#""pod_uid":"uid-of-prometheus-5fb7f6f8d8-h9cts","workload":null,"workload_kind":null,"#,
                r#""service_account":null,"node":"worker-1","host_network":null,"labels":null},"#,
                r#""dst":{"ip":"10.244.0.13","port":9081,"namespace":"echo-1-27855","#,
                r#""pod":"productpage-v1-8499c849b9-bz9t9","pod_uid":"uid-of-productpage-v1-8499c849b9-bz9t9","#,
                r#""workload":"productpage-v1","workload_kind":"Deployment","service_account":"productpage-v1","#,
                r#""node":"worker-1","host_network":false,"labels":{"app":"productpage","version":"v1"}},"#,
                r#""reason":"NO_SOCKET","count":12,"netns":4026532291}"#,
                "\n",
            ),
            concat!(
                r#"{"type":"listener","v":1,"time":"2024-09-14T08:19:26.552709932Z","#,
                r#""dst":{"ip":"::","port":22},"process":null,"#,
                r#""local":{"netns":4026532291,"cgroup_id":8123,"container_id":null,"container":null},"#,
                r#""id":"5f2c82-0","backlog":0,"max_backlog":4096,"half_open":0,"dropped":0,"dropped_total":0}"#,
                "\n",
            ),
        ];
        let [rejected, _, listening, _] = <[Record; 4]>::try_from(testing::reports()).unwrap();
        for (record, expected) in [rejected, listening].iter().zip(expected) {
            assert_eq!(line(|json| json.report(record)), expected);
        }
    }

    #[test]
    fn drops_stand_in_their_member() {
        let cases = [
            (
                testing::dropped(),
                r#""drops":[{"direction":"sent","reason":"NETFILTER_DROP","packets":6}],"turns":null"#,
            ),
            (
                testing::aborted(),
                r#""reset_reason":"TCP_ABORT_ON_CLOSE","drops":[],"turns":null"#,
            ),
        ];
        for (record, expected) in cases {
            let line = conn(&record);
            assert!(line.contains(expected), "{line}");
        }
    }

    #[test]
    fn losses_and_summaries_print_the_documented_lines() {
        let lost = line(|json| json.lost(&testing::lost()));
        let expected = concat!(
            r#"{"type":"lost","v":1,"time":"2024-09-14T08:19:26.552709932Z","lost_records":12,"#,
            r#""lost_records_total":40,"reason":"ring_full,program_skipped"}"#,
            "\n",
        );
        assert_eq!(lost, expected);

        let summary = line(|json| json.summary(&testing::summary()));
        let expected = concat!(
            r#"{"type":"summary","v":1,"time":"2024-09-14T08:19:26.552709932Z","closes":100,"delivered":80,"#,
            r#""filtered":7,"lost_records":12,"after_limit":1,"unresolved":3,"open":9,"not_scanned":4,"#,
            r#""drops_evicted":2,"elapsed_ns":12345678901,"#,
            r#""node":"worker-1","kernel":"6.18.0","version":"0.1.0","lost_at_most":2,"#,
            r#""reason":"ring_full,program_skipped"}"#,
            "\n",
        );
        assert_eq!(summary, expected);

        let clean = line(|json| json.summary(&testing::clean_summary()));
        assert!(clean.ends_with("\"lost_at_most\":0,\"reason\":null}\n"), "{clean}");
    }

    #[test]
    fn hostile_process_name_is_escaped_and_decodes_exactly() {
        for name in testing::hostile_names() {
            let line = conn(&testing::named(&name));
            assert!(testing::is_harmless(&line), "{line:?}");
            assert_eq!(line.find('\n'), Some(line.len() - 1));
            let value: Value = serde_json::from_str(&line).unwrap();
            assert_eq!(value["process"]["comm"], *String::from_utf8_lossy(&name));
        }
    }

    #[test]
    fn hostile_kubernetes_name_is_escaped_and_decodes_exactly() {
        for name in testing::hostile_texts() {
            let line = conn(&testing::in_pods_called(&name));
            assert!(testing::is_harmless(&line), "{line:?}");
            assert_eq!(line.find('\n'), Some(line.len() - 1));
            let value: Value = serde_json::from_str(&line).unwrap();
            for end in ["src", "dst"] {
                for member in [
                    "namespace",
                    "pod",
                    "pod_uid",
                    "workload",
                    "workload_kind",
                    "service_account",
                    "node",
                ] {
                    assert_eq!(value[end][member], *name, "{end} {member}");
                }
                assert_eq!(value[end]["labels"][&*name], *name);
            }
            assert_eq!(value["service"]["host"], *name);
            assert_eq!(value["local"]["container"], *name);
        }
    }

    #[test]
    fn every_write_ends_with_a_whole_line() {
        struct Pieces(testing::Shared);
        impl io::Write for Pieces {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                assert!(bytes.ends_with(b"}\n"));
                self.0.write(bytes)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let out = testing::Shared::default();
        let mut json = Json::new(testing::ALL_EVENTS, &testing::info(), Stdout::to(Pieces(out.clone())));
        let records: Vec<_> = (0..200).flat_map(|_| testing::all()).collect();
        for record in &records {
            json.record(record, &Delta::default()).unwrap();
        }
        json.flush().unwrap();
        assert_eq!(out.text().lines().count(), records.len());
    }
}
