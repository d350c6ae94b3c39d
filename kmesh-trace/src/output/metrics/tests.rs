//! The exposition of records whose labels are known, read back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::exposition::Exposition;
use super::*;
use crate::config::CommonLabels;
use crate::output::allocations::allocations_of;
use crate::output::testing;
use crate::track::delta::Deltas;

/// Series by name and labels.
type Read = BTreeMap<String, f64>;

fn settings() -> SeriesConfig {
    SeriesConfig {
        levels: vec![Level::Workload, Level::Service],
        max_series: 20_000,
        idle: Duration::from_secs(600),
        common: CommonLabels {
            cluster: "Kubernetes".into(),
            trust_domain: "cluster.local".into(),
            compat: false,
        },
    }
}

/// Metrics with the deltas of their records.
struct Run {
    metrics: Metrics,
    deltas: Deltas,
}

impl Run {
    fn record(&mut self, record: &Record) {
        let delta = self.deltas.take(record);
        self.metrics.record(record, &delta).unwrap();
    }

    fn watermark(&mut self, until: WallTime) {
        self.metrics.watermark(until).unwrap();
    }

    fn values(&self) -> Arc<Values> {
        self.metrics.values()
    }
}

fn metrics(settings: SeriesConfig) -> Run {
    Run {
        metrics: Metrics::new(settings, &testing::info()),
        deltas: Deltas::default(),
    }
}

fn text(metrics: &Run) -> String {
    Exposition::new(metrics.values()).text()
}

fn read(metrics: &Run) -> Read {
    parsed(&text(metrics))
}

fn parsed(text: &str) -> Read {
    let series = text.lines().filter(|line| !line.starts_with('#'));
    series
        .map(|line| {
            let (series, value) = line.rsplit_once(' ').unwrap();
            (series.to_owned(), value.parse().unwrap())
        })
        .collect()
}

/// The sum of the series of a family whose labels have all of these.
fn sum(read: &Read, family: &str, labels: &[&str]) -> f64 {
    let is_it =
        |series: &str| series.split('{').next() == Some(family) && labels.iter().all(|label| series.contains(label));
    read.iter()
        .filter(|(series, _)| is_it(series))
        .map(|(_, value)| value)
        .sum()
}

/// Of which connection-related series there are.
fn count(read: &Read) -> usize {
    read.keys().filter(|series| series.contains("reporter=")).count()
}

/// The contract's connection: what its labels are is written out here by hand.
const LABELS: &str = r#"reporter="destination",source_workload="-",source_canonical_service="-",source_canonical_revision="latest",source_workload_namespace="istio-system",source_principal="-",source_app="-",source_version="latest",source_cluster="Kubernetes",PLACEdestination_workload="productpage-v1",destination_canonical_service="productpage",destination_canonical_revision="v1",destination_workload_namespace="echo-1-27855",destination_principal="-",destination_app="productpage",destination_version="v1",destination_cluster="Kubernetes",request_protocol="tcp",response_flags="-",connection_security_policy="unknown""#;
const POD: &str = r#"destination_pod_address="10.244.0.13",destination_pod_namespace="echo-1-27855",destination_pod_name="productpage-v1-8499c849b9-bz9t9","#;
const SERVICE: &str = r#"destination_service="productpage.echo-1-27855.svc.cluster.local",destination_service_namespace="echo-1-27855",destination_service_name="productpage","#;

#[test]
fn every_family_has_kmeshs_name_and_labels() {
    let mut settings = settings();
    settings.levels.push(Level::Connection);
    let mut metrics = metrics(settings);
    metrics.record(&testing::in_pods());
    let read = read(&metrics);
    let (pod, service) = (LABELS.replace("PLACE", POD), LABELS.replace("PLACE", SERVICE));
    let one = LABELS.replace("PLACE", &format!("{POD}{SERVICE}")).replacen(
        "source_workload",
        r#"start_time="2024-09-14T08:19:26.549976030Z",source_address="10.244.0.17:51842",destination_address="10.244.0.13:9080",source_workload"#,
        1,
    );
    let uf = |labels: &str| labels.replace(r#"response_flags="-""#, r#"response_flags="UF""#);
    let cases = [
        ("kmesh_tcp_workload_connections_opened_total", &pod, 1.0),
        ("kmesh_tcp_workload_connections_closed_total", &pod, 1.0),
        ("kmesh_tcp_workload_received_bytes_total", &pod, 292.0),
        ("kmesh_tcp_workload_sent_bytes_total", &pod, 5.0),
        ("kmesh_tcp_retrans_total", &pod, 0.0),
        ("kmesh_tcp_packet_loss_total", &pod, 0.0),
        ("kmesh_tcp_workload_connections_failed_total", &uf(&pod), 0.0),
        ("kmesh_tcp_connections_opened_total", &service, 1.0),
        ("kmesh_tcp_connections_closed_total", &service, 1.0),
        ("kmesh_tcp_received_bytes_total", &service, 292.0),
        ("kmesh_tcp_sent_bytes_total", &service, 5.0),
        ("kmesh_tcp_connections_failed_total", &uf(&service), 0.0),
        ("kmesh_tcp_connection_sent_bytes_total", &one, 5.0),
        ("kmesh_tcp_connection_received_bytes_total", &one, 292.0),
        ("kmesh_tcp_connection_packet_lost_total", &one, 0.0),
        ("kmesh_tcp_connection_retrans_total", &one, 0.0),
    ];
    for (family, labels, value) in cases {
        let series = format!("{family}{{{labels}}}");
        assert_eq!(read.get(&series), Some(&value), "{series}\n{read:#?}");
    }
    assert_eq!(sum(&read, "kmesh_trace_outcomes_total", &[r#"outcome="ok""#]), 1.0);
    let pair = r#"source_workload="-",source_workload_namespace="istio-system",destination_workload="productpage-v1",destination_workload_namespace="echo-1-27855""#;
    let count = "kmesh_trace_connection_duration_seconds_count";
    assert_eq!(sum(&read, count, &[pair, r#"reporter="destination""#]), 1.0);
    assert_eq!(
        sum(&read, "kmesh_trace_connection_duration_seconds_sum", &[pair]),
        0.002_733_902
    );
    assert_eq!(sum(&read, "kmesh_trace_connect_duration_seconds_count", &[]), 0.0);
    for name in [
        "process_cpu_seconds_total",
        "process_resident_memory_bytes",
        "process_start_time_seconds",
    ] {
        assert!(read.contains_key(name), "{name}");
    }
    assert!(!text(&metrics).contains("conntections"));
    assert!(text(&metrics).ends_with("# EOF\n"));
}

#[test]
fn compat_spells_and_claims_as_kmesh_does() {
    let mut settings = settings();
    settings.common.compat = true;
    let mut metrics = metrics(settings);
    metrics.record(&testing::refused());
    let read = read(&metrics);
    for name in ["connections", "conntections"] {
        for family in ["kmesh_tcp_workload_", "kmesh_tcp_"] {
            let family = format!("{family}{name}_failed_total");
            assert_eq!(sum(&read, &family, &[r#"response_flags="UF""#]), 1.0, "{family}");
        }
    }
    let with_policy = read.keys().filter(|series| series.contains("policy="));
    assert!(with_policy.clone().count() > 0);
    with_policy.for_each(|series| assert!(series.contains(r#"policy="mutual_tls""#), "{series}"));
}

#[test]
fn failures_never_connected_or_were_cut_off() {
    let cases = [
        (Outcome::Refused, false, "UF"),
        (Outcome::ConnectTimeout, false, "UF"),
        (Outcome::ConnectAborted, false, "UF"),
        (Outcome::Unreachable, false, "UF"),
        (Outcome::Unreachable, true, "UC"),
        (Outcome::ResetByPeer, true, "UC"),
        (Outcome::ResetByLocal, true, "UC"),
        (Outcome::Timeout, true, "UC"),
    ];
    for (outcome, established, flags) in cases {
        let mut metrics = metrics(settings());
        metrics.record(&Record {
            outcome: Some(outcome),
            established,
            ..testing::in_pods()
        });
        let read = read(&metrics);
        let (failed, all) = (
            "kmesh_tcp_connections_failed_total",
            format!("response_flags={flags:?}"),
        );
        assert_eq!(sum(&read, failed, &[&all]), 1.0, "{outcome:?}");
        assert_eq!(sum(&read, failed, &[]), 1.0, "{outcome:?}");
        let opened = f64::from(u8::from(established));
        assert_eq!(
            sum(&read, "kmesh_tcp_connections_opened_total", &[]),
            opened,
            "{outcome:?}"
        );
        assert_eq!(
            sum(&read, "kmesh_tcp_connections_closed_total", &[]),
            opened,
            "{outcome:?}"
        );
        let label = format!("outcome={:?}", outcome.name());
        assert_eq!(sum(&read, "kmesh_trace_outcomes_total", &[&label]), 1.0);
    }
}

#[test]
fn principals_are_named_only_where_the_link_is_known_to_be_mutual_tls() {
    let mut metrics = metrics(settings());
    let mut record = testing::in_pods();
    record.dst.set_port(15008);
    metrics.record(&record);
    let read = read(&metrics);
    let labels = [
        r#"destination_principal="spiffe://cluster.local/ns/echo-1-27855/sa/productpage-v1""#,
        r#"source_principal="-""#,
        r#"connection_security_policy="mutual_tls""#,
    ];
    assert_eq!(sum(&read, "kmesh_tcp_sent_bytes_total", &labels), 5.0);
}

#[test]
fn levels_can_be_switched() {
    let families = [
        (Level::Workload, "kmesh_tcp_workload_sent_bytes_total"),
        (Level::Service, "kmesh_tcp_sent_bytes_total"),
        (Level::Connection, "kmesh_tcp_connection_sent_bytes_total"),
    ];
    for (level, _) in families {
        let mut metrics = metrics(SeriesConfig {
            levels: vec![level],
            ..settings()
        });
        metrics.record(&testing::in_pods());
        let read = read(&metrics);
        for (other, family) in families {
            let expected = if other == level { 5.0 } else { 0.0 };
            assert_eq!(sum(&read, family, &[]), expected, "{level:?}: {family}");
        }
    }
}

/// Updates and closes of `connections` connections, in an order of chance.
fn scattered(connections: u64) -> impl Iterator<Item = Record> {
    let mut next = testing::random(7);
    (0..connections).flat_map(move |cookie| {
        let mut record = testing::in_pods();
        record.id.cookie = cookie;
        record.src.set_port(1024 + (cookie % 60_000) as u16);
        let steps = next() % 3;
        let mut sent = 0;
        let mut records = Vec::new();
        for step in 0..=steps {
            sent += next() % 1000;
            records.push(Record {
                event: if step == steps { Event::Close } else { Event::Update },
                sent_bytes: sent,
                ..record.clone()
            });
        }
        records
    })
}

#[test]
fn bytes_are_counted_once_at_every_level() {
    let mut metrics = metrics(SeriesConfig {
        levels: vec![Level::Workload, Level::Service, Level::Connection],
        max_series: 200,
        ..settings()
    });
    let mut sent = 0;
    for record in scattered(2_000) {
        sent += if record.event == Event::Close {
            record.sent_bytes
        } else {
            0
        };
        metrics.record(&record);
    }
    let read = read(&metrics);
    for family in [
        "kmesh_tcp_workload_sent_bytes_total",
        "kmesh_tcp_sent_bytes_total",
        "kmesh_tcp_connection_sent_bytes_total",
    ] {
        assert_eq!(sum(&read, family, &[]), sent as f64, "{family}");
    }
    assert_eq!(sum(&read, "kmesh_tcp_connections_opened_total", &[]), 2_000.0);
    assert!(
        sum(
            &read,
            "kmesh_tcp_connection_sent_bytes_total",
            &[r#"start_time="other""#]
        ) > 0.0
    );
    assert!(sum(&read, "kmesh_trace_metrics_folded_total", &[]) > 1_900.0);
    // Those of all the rest come on top: of two reporters, five kinds at most.
    assert!(count(&read) <= 200 + 4, "{}", count(&read));
}

/// A pod for each number.
fn from_pod(number: u64) -> Record {
    let mut record = testing::in_pods();
    let pod = record.names.dst.pod.as_deref().unwrap().clone();
    record.names.dst.pod = Some(Arc::new(Pod {
        name: format!("pod-{number}").into(),
        ..pod
    }));
    record.id.cookie = number;
    record
}

/// Several times as many destinations as there are routes and series.
#[test]
fn many_destinations_fold_into_what_there_is_room_for() {
    const DESTINATIONS: u64 = 6 * MOST_ROUTES as u64;
    let sent = 5.0 * DESTINATIONS as f64;
    let mut metrics = metrics(SeriesConfig {
        max_series: 1_000,
        ..settings()
    });
    for number in 0..DESTINATIONS {
        metrics.record(&from_pod(number));
        if number % 10_000 == 0 {
            metrics.watermark(testing::TIME);
        }
    }
    let read = read(&metrics);
    assert!(count(&read) <= 1_000 + 8 + 6 + Timing::SERIES, "{}", count(&read));
    assert!(metrics.metrics.routes.len() <= MOST_ROUTES);
    assert_eq!(sum(&read, "kmesh_tcp_workload_sent_bytes_total", &[]), sent);
    let rest = [r#"destination_pod_name="other""#, r#"reporter="destination""#];
    assert!(sum(&read, "kmesh_tcp_workload_sent_bytes_total", &rest) > 0.98 * sent);
    let text = text(&metrics);
    let folded = text
        .lines()
        .find(|line| line.contains(r#"destination_pod_name="other""#))
        .unwrap();
    let labels = folded
        .split(['{', '}'])
        .nth(1)
        .unwrap()
        .split("\",")
        .map(|label| label.trim_matches('"'));
    for label in labels.filter(|label| !label.starts_with("reporter")) {
        assert!(label.ends_with(r#"="other"#), "{label}");
    }
}

#[test]
fn a_series_goes_when_its_pods_are_gone_and_it_is_idle() {
    let mut metrics = metrics(settings());
    let after = |seconds: i64| WallTime(testing::TIME.0 + seconds * 1_000_000_000);
    let record = from_pod(1);
    metrics.record(&record);
    metrics.watermark(after(10_000));
    assert_eq!(
        sum(&read(&metrics), "kmesh_tcp_workload_sent_bytes_total", &[]),
        5.0,
        "its pod lives"
    );
    drop(record);
    let mut other = from_pod(2);
    other.time = after(20_000);
    metrics.record(&other);
    metrics.watermark(after(20_300));
    let left = read(&metrics);
    assert_eq!(
        sum(&left, "kmesh_tcp_workload_sent_bytes_total", &["pod-1"]),
        0.0,
        "gone and idle"
    );
    assert_eq!(sum(&left, "kmesh_tcp_workload_sent_bytes_total", &["pod-2"]), 5.0);
    drop(other);
    metrics.watermark(after(20_400));
    assert!(
        sum(&read(&metrics), "kmesh_tcp_workload_sent_bytes_total", &["pod-2"]) > 0.0,
        "not idle yet"
    );
    metrics.watermark(after(21_000));
    assert_eq!(count(&read(&metrics)), 0);
    assert!(metrics.values().room.is_empty());
}

#[test]
fn names_that_others_choose_stay_within_their_quotes() {
    let mut metrics = metrics(settings());
    let mut record = testing::in_pods();
    let pod = record.names.dst.pod.as_deref().unwrap().clone();
    record.names.dst.pod = Some(Arc::new(Pod {
        name: "a\"} 1\nkmesh_trace_pods 99\n\\".into(),
        ..pod
    }));
    metrics.record(&record);
    let text = text(&metrics);
    assert!(text.contains(r#"destination_pod_name="a\"} 1\nkmesh_trace_pods 99\n\\""#));
    assert!(!text.lines().any(|line| line == "kmesh_trace_pods 99"));
}

#[test]
fn a_record_of_known_ends_allocates_nothing() {
    let mut metrics = metrics(settings());
    let mut records = testing::all();
    records.extend(scattered(100));
    let mut record_all = || allocations_of(|| records.iter().for_each(|record| metrics.record(record)));
    assert!(record_all() > 0, "the count counts");
    assert_eq!(record_all(), 0);
}

/// A scrape shows each record whole or not at all, so all families agree. Records keep coming until several scrapes have seen
/// different numbers of them.
#[test]
fn a_scrape_has_no_half_records() {
    const SCRAPES: usize = 20;
    let mut metrics = metrics(settings());
    let mut exposition = Exposition::new(metrics.values());
    let is_enough = AtomicBool::new(false);
    let mut seen = 0.0;
    let mut scrape = || {
        let read = parsed(&exposition.text());
        let count = sum(&read, "kmesh_trace_outcomes_total", &[]);
        for family in [
            "kmesh_tcp_workload_connections_closed_total",
            "kmesh_tcp_connections_closed_total",
            "kmesh_trace_connection_duration_seconds_count",
        ] {
            assert_eq!(sum(&read, family, &[]), count, "{family}");
        }
        assert_eq!(sum(&read, "kmesh_tcp_sent_bytes_total", &[]), 5.0 * count);
        let has_more = count > seen;
        seen = count;
        has_more
    };
    let written = std::thread::scope(|scope| {
        let records = scope.spawn(|| {
            let mut record = testing::in_pods();
            record.id.cookie = 0;
            while !is_enough.load(Ordering::Relaxed) {
                metrics.record(&record);
                record.id.cookie += 1;
            }
            record.id.cookie
        });
        // A failed scrape must not leave the other thread at work for ever.
        let scraped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut different = 0;
            while different < SCRAPES && !records.is_finished() {
                different += usize::from(scrape());
            }
        }));
        is_enough.store(true, Ordering::Relaxed);
        scraped.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        records.join().unwrap()
    });
    scrape();
    assert_eq!(seen, written as f64);
}
