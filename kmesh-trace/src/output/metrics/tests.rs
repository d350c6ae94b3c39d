//! Parses the exposition of records and compares series with values that are written out here.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::exposition::Exposition;
use super::*;
use crate::config::CommonLabels;
use crate::output::allocations::allocations_of;
use crate::output::testing;
use crate::record::AcceptQueue;
use crate::track::delta::Deltas;

/// The values of series, by name and labels.
type Scrape = BTreeMap<String, f64>;

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

/// A sink with the deltas of its records.
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

fn scrape(metrics: &Run) -> Scrape {
    parsed(&text(metrics))
}

fn parsed(text: &str) -> Scrape {
    let series = text.lines().filter(|line| !line.starts_with('#'));
    series
        .map(|line| {
            let (series, value) = line.rsplit_once(' ').unwrap();
            (series.to_owned(), value.parse().unwrap())
        })
        .collect()
}

/// Returns the sum of the series of a family that have all of `labels`.
fn sum(scrape: &Scrape, family: &str, labels: &[&str]) -> f64 {
    let is_match =
        |series: &str| series.split('{').next() == Some(family) && labels.iter().all(|label| series.contains(label));
    scrape
        .iter()
        .filter(|(series, _)| is_match(series))
        .map(|(_, value)| value)
        .sum()
}

/// Returns the number of series about connections.
fn count(scrape: &Scrape) -> usize {
    scrape.keys().filter(|series| series.contains("reporter=")).count()
}

/// The labels of the connection in the contract's examples.
const LABELS: &str = r#"reporter="destination",source_workload="-",source_canonical_service="-",source_canonical_revision="latest",source_workload_namespace="istio-system",source_principal="-",source_app="-",source_version="latest",source_cluster="Kubernetes",PLACEdestination_workload="productpage-v1",destination_canonical_service="productpage",destination_canonical_revision="v1",destination_workload_namespace="echo-1-27855",destination_principal="-",destination_app="productpage",destination_version="v1",destination_cluster="Kubernetes",request_protocol="tcp",response_flags="-",connection_security_policy="unknown""#;
const POD: &str = r#"destination_pod_address="10.244.0.13",destination_pod_namespace="echo-1-27855",destination_pod_name="productpage-v1-8499c849b9-bz9t9","#;
const SERVICE: &str = r#"destination_service="productpage.echo-1-27855.svc.cluster.local",destination_service_namespace="echo-1-27855",destination_service_name="productpage","#;

#[test]
fn metrics_have_kmesh_names_and_labels() {
    let mut settings = settings();
    settings.levels.push(Level::Connection);
    let mut metrics = metrics(settings);
    metrics.record(&testing::in_pods());
    let scrape = scrape(&metrics);
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
        assert_eq!(scrape.get(&series), Some(&value), "{series}\n{scrape:#?}");
    }
    assert_eq!(sum(&scrape, "kmesh_trace_outcomes_total", &[r#"outcome="ok""#]), 1.0);
    let pair = r#"source_workload="-",source_workload_namespace="istio-system",destination_workload="productpage-v1",destination_workload_namespace="echo-1-27855""#;
    let count = "kmesh_trace_connection_duration_seconds_count";
    assert_eq!(sum(&scrape, count, &[pair, r#"reporter="destination""#]), 1.0);
    assert_eq!(
        sum(&scrape, "kmesh_trace_connection_duration_seconds_sum", &[pair]),
        0.002_733_902
    );
    assert_eq!(sum(&scrape, "kmesh_trace_connect_duration_seconds_count", &[]), 0.0);
    for name in [
        "process_cpu_seconds_total",
        "process_resident_memory_bytes",
        "process_start_time_seconds",
    ] {
        assert!(scrape.contains_key(name), "{name}");
    }
    assert!(!text(&metrics).contains("conntections"));
    assert!(text(&metrics).ends_with("# EOF\n"));
}

#[test]
fn compat_repeats_kmesh_spelling_and_security_policy() {
    let mut settings = settings();
    settings.common.compat = true;
    let mut metrics = metrics(settings);
    metrics.record(&testing::refused());
    let scrape = scrape(&metrics);
    for name in ["connections", "conntections"] {
        for family in ["kmesh_tcp_workload_", "kmesh_tcp_"] {
            let family = format!("{family}{name}_failed_total");
            assert_eq!(sum(&scrape, &family, &[r#"response_flags="UF""#]), 1.0, "{family}");
        }
    }
    let with_policy = scrape.keys().filter(|series| series.contains("policy="));
    assert!(with_policy.clone().count() > 0);
    with_policy.for_each(|series| assert!(series.contains(r#"policy="mutual_tls""#), "{series}"));
}

#[test]
fn failed_attempts_are_uf_and_failed_connections_uc() {
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
        let scrape = scrape(&metrics);
        let (failed, all) = (
            "kmesh_tcp_connections_failed_total",
            format!("response_flags={flags:?}"),
        );
        assert_eq!(sum(&scrape, failed, &[&all]), 1.0, "{outcome:?}");
        assert_eq!(sum(&scrape, failed, &[]), 1.0, "{outcome:?}");
        let opened = f64::from(u8::from(established));
        assert_eq!(
            sum(&scrape, "kmesh_tcp_connections_opened_total", &[]),
            opened,
            "{outcome:?}"
        );
        assert_eq!(
            sum(&scrape, "kmesh_tcp_connections_closed_total", &[]),
            opened,
            "{outcome:?}"
        );
        let label = format!("outcome={:?}", outcome.name());
        assert_eq!(sum(&scrape, "kmesh_trace_outcomes_total", &[&label]), 1.0);
    }
}

#[test]
fn principal_is_known_only_with_mutual_tls() {
    let mut metrics = metrics(settings());
    let mut record = testing::in_pods();
    record.dst.set_port(15008);
    metrics.record(&record);
    let scrape = scrape(&metrics);
    let labels = [
        r#"destination_principal="spiffe://cluster.local/ns/echo-1-27855/sa/productpage-v1""#,
        r#"source_principal="-""#,
        r#"connection_security_policy="mutual_tls""#,
    ];
    assert_eq!(sum(&scrape, "kmesh_tcp_sent_bytes_total", &labels), 5.0);
}

#[test]
fn each_level_has_its_own_series() {
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
        let scrape = scrape(&metrics);
        for (other, family) in families {
            let expected = if other == level { 5.0 } else { 0.0 };
            assert_eq!(sum(&scrape, family, &[]), expected, "{level:?}: {family}");
        }
    }
}

/// Returns random updates and the closes of `connections` connections.
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
    let scrape = scrape(&metrics);
    for family in [
        "kmesh_tcp_workload_sent_bytes_total",
        "kmesh_tcp_sent_bytes_total",
        "kmesh_tcp_connection_sent_bytes_total",
    ] {
        assert_eq!(sum(&scrape, family, &[]), sent as f64, "{family}");
    }
    assert_eq!(sum(&scrape, "kmesh_tcp_connections_opened_total", &[]), 2_000.0);
    assert!(
        sum(
            &scrape,
            "kmesh_tcp_connection_sent_bytes_total",
            &[r#"start_time="other""#]
        ) > 0.0
    );
    assert!(sum(&scrape, "kmesh_trace_metrics_folded_total", &[]) > 1_900.0);
    // The overflow series are not part of the budget.
    assert!(count(&scrape) <= 200 + 4, "{}", count(&scrape));
}

/// Returns a record of pod `number`.
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

/// There are several times more destinations than cached keys and series.
#[test]
fn destinations_beyond_the_budget_count_in_overflow_series() {
    const DESTINATIONS: u64 = 6 * MAX_CACHED_KEYS as u64;
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
    let scrape = scrape(&metrics);
    assert!(count(&scrape) <= 1_000 + 8 + 6 + Timing::SERIES, "{}", count(&scrape));
    assert!(metrics.metrics.cached.len() <= MAX_CACHED_KEYS);
    assert_eq!(sum(&scrape, "kmesh_tcp_workload_sent_bytes_total", &[]), sent);
    let rest = [r#"destination_pod_name="other""#, r#"reporter="destination""#];
    assert!(sum(&scrape, "kmesh_tcp_workload_sent_bytes_total", &rest) > 0.98 * sent);
    let text = text(&metrics);
    let overflow = text
        .lines()
        .find(|line| line.contains(r#"destination_pod_name="other""#))
        .unwrap();
    let labels = overflow
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
fn series_expires_when_idle_and_its_pods_are_gone() {
    let mut metrics = metrics(settings());
    let after = |seconds: i64| WallTime(testing::TIME.0 + seconds * 1_000_000_000);
    let record = from_pod(1);
    metrics.record(&record);
    metrics.watermark(after(10_000));
    assert_eq!(
        sum(&scrape(&metrics), "kmesh_tcp_workload_sent_bytes_total", &[]),
        5.0,
        "its pod is alive"
    );
    drop(record);
    let mut other = from_pod(2);
    other.time = after(20_000);
    metrics.record(&other);
    metrics.watermark(after(20_300));
    let left = scrape(&metrics);
    assert_eq!(
        sum(&left, "kmesh_tcp_workload_sent_bytes_total", &["pod-1"]),
        0.0,
        "gone and idle"
    );
    assert_eq!(sum(&left, "kmesh_tcp_workload_sent_bytes_total", &["pod-2"]), 5.0);
    drop(other);
    metrics.watermark(after(20_400));
    assert!(
        sum(&scrape(&metrics), "kmesh_tcp_workload_sent_bytes_total", &["pod-2"]) > 0.0,
        "not idle yet"
    );
    metrics.watermark(after(21_000));
    assert_eq!(count(&scrape(&metrics)), 0);
    assert!(metrics.values().budget.is_empty());
}

#[test]
fn hostile_pod_name_stays_within_its_quotes() {
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
fn record_with_cached_series_allocates_nothing() {
    let mut metrics = metrics(settings());
    let mut records = testing::all();
    // The delta of dropped packets is a list.
    records.retain(|record| record.drops.as_ref().is_none_or(Vec::is_empty));
    records.extend(scattered(100));
    let mut record_all = || allocations_of(|| records.iter().for_each(|record| metrics.record(record)));
    assert!(
        record_all() > 0,
        "the first pass must allocate, or the counter is broken"
    );
    assert_eq!(record_all(), 0);
}

/// All series of a scrape agree on the number of records. Records keep coming until several scrapes have seen different
/// numbers of them.
#[test]
fn scrape_counts_a_record_in_all_series_or_none() {
    const SCRAPES: usize = 20;
    let mut metrics = metrics(settings());
    let mut exposition = Exposition::new(metrics.values());
    let is_enough = AtomicBool::new(false);
    let mut seen = 0.0;
    let mut scrape = || {
        let scrape = parsed(&exposition.text());
        let count = sum(&scrape, "kmesh_trace_outcomes_total", &[]);
        for family in [
            "kmesh_tcp_workload_connections_closed_total",
            "kmesh_tcp_connections_closed_total",
            "kmesh_trace_connection_duration_seconds_count",
        ] {
            assert_eq!(sum(&scrape, family, &[]), count, "{family}");
        }
        assert_eq!(sum(&scrape, "kmesh_tcp_sent_bytes_total", &[]), 5.0 * count);
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
        // A failed assertion must also end the other thread.
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

#[test]
fn listeners_of_one_workload_and_port_add_up() {
    const SERIES: &str =
        r#"{destination_workload="productpage-v1",destination_workload_namespace="echo-1-27855",port="9080"}"#;
    let queue = |backlog, dropped| AcceptQueue {
        backlog,
        dropped,
        ..AcceptQueue::default()
    };
    let listener = |cookie, queue| {
        let mut record = testing::listening();
        (record.id.cookie, record.subject) = (cookie, Subject::Listener(queue));
        record
    };
    let mut metrics = metrics(settings());
    let mut report = |record: &Record| {
        metrics.metrics.report(record).unwrap();
        let scrape = scrape(&metrics);
        ["backlog", "dropped_total"].map(|name| {
            scrape
                .get(&format!("kmesh_trace_listener_{name}{SERIES}"))
                .copied()
                .unwrap_or(0.0)
        })
    };
    let mut unnamed = listener(1, queue(3, 0));
    unnamed.names = crate::record::Names::default();
    assert_eq!(report(&unnamed), [0.0, 0.0], "its pod is unknown");
    assert_eq!(report(&listener(1, queue(129, 4))), [129.0, 4.0]);
    assert_eq!(report(&listener(2, queue(1, 0))), [130.0, 4.0]);
    assert_eq!(report(&listener(1, queue(0, 1))), [1.0, 5.0]);
    // A reject changes nothing.
    assert_eq!(report(&testing::rejected()), [1.0, 5.0]);
    metrics.metrics.exclude(listener(2, queue(1, 0)).id);
    let backlogs = |metrics: &Run| {
        let scrape = scrape(metrics);
        let series = scrape
            .into_iter()
            .filter(|(series, _)| series.starts_with("kmesh_trace_listener_backlog"));
        series.map(|(_, backlog)| backlog).collect::<Vec<_>>()
    };
    // The other one is that of the unknown pod.
    assert_eq!(backlogs(&metrics), [0.0, 0.0]);
    // A quiet listener keeps its series, one that is gone does not.
    metrics.watermark(WallTime(testing::TIME.0 + 3_600_000_000_000));
    assert_eq!(backlogs(&metrics), [0.0]);
    metrics.metrics.exclude(listener(1, queue(0, 0)).id);
    metrics.watermark(WallTime(testing::TIME.0 + 7_200_000_000_000));
    assert_eq!(backlogs(&metrics).len(), 0);
    assert!(metrics.values().budget.is_empty());
}

#[test]
fn listeners_beyond_the_budget_count_in_the_overflow_series() {
    let mut metrics = metrics(SeriesConfig {
        max_series: Queues::SERIES,
        ..settings()
    });
    for port in 1..=3 {
        let mut record = testing::listening();
        record.id.cookie = port.into();
        record.dst.set_port(port);
        metrics.metrics.report(&record).unwrap();
    }
    let scrape = scrape(&metrics);
    let other = r#"{destination_workload="other",destination_workload_namespace="other",port="other"}"#;
    assert_eq!(scrape[&format!("kmesh_trace_listener_backlog{other}")], 2.0 * 129.0);
    assert_eq!(scrape[&format!("kmesh_trace_listener_dropped_total{other}")], 10.0);
    assert_eq!(scrape["kmesh_trace_metrics_folded_total"], 2.0);
}
