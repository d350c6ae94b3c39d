//! The source against an API server that the test plays.

use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::thread;
use std::time::Duration;

use super::*;
use crate::names::sources::RefreshRequest;
use crate::names::sources::test_server::{Reply, client, reporter, runtime, serve};
use crate::names::update::{Change, Key, Object, SourceId};

/// The longest time for what must come. Only a failing test waits this long.
const WAIT: Duration = Duration::from_secs(60);

fn is_pods(path: &str) -> bool {
    path.starts_with("/api/v1/pods?")
}

fn is_watch(path: &str) -> bool {
    path.contains("watch=true")
}

/// A source at work.
struct Run {
    changes: Receiver<Change>,
    reports: Receiver<(SourceId, Report)>,
    request: RefreshRequest,
}

fn run(server: http::Uri) -> Run {
    let request = RefreshRequest(Arc::new(tokio::sync::watch::Sender::new(())));
    let source = ApiServerSource {
        client: client(server),
        node: "n1".to_owned(),
        this_node: false,
        requests: request.0.subscribe(),
    };
    let (reporter, changes, reports) = reporter();
    thread::spawn(move || runtime().block_on(source.run(reporter)));
    Run {
        changes,
        reports,
        request,
    }
}

impl Run {
    /// Returns the next changes of pods, in short, up to `last`.
    fn pods_until(&self, last: &str) -> Vec<String> {
        let mut all: Vec<String> = Vec::new();
        while all.last().is_none_or(|change| change != last) {
            let change = self.changes.recv_timeout(WAIT);
            match change.unwrap_or_else(|_| panic!("{last} did not come after {all:?}")) {
                Change::ListStart(Scope::All(Kind::Pods)) => all.push("start".to_owned()),
                Change::ListEnd(Scope::All(Kind::Pods)) => all.push("end".to_owned()),
                Change::ListStart(Scope::PodsOfNode(node)) => all.push(format!("start {node}")),
                Change::ListEnd(Scope::PodsOfNode(node)) => all.push(format!("end {node}")),
                Change::Upsert(Object::Pod(pod)) => all.push(pod.uid),
                Change::Delete(Key::Pod(uid)) => all.push(format!("delete {uid}")),
                _ => {}
            }
        }
        all
    }

    /// Returns the first report that `take` takes.
    fn report<T>(&self, take: impl Fn(Report) -> Option<T>) -> T {
        loop {
            let (_, report) = self.reports.recv_timeout(WAIT).expect("a report");
            if let Some(found) = take(report) {
                return found;
            }
        }
    }
}

fn pod(uid: &str, more: &str) -> String {
    format!(r#"{{"metadata":{{"uid":"{uid}","name":"{uid}"{more}}}}}"#)
}

fn list(items: &[String], meta: &str) -> String {
    format!(
        r#"{{"kind":"PodList","metadata":{{{meta}}},"items":[{}]}}"#,
        items.join(",")
    )
}

/// 30 pods of 1.4 MB each, as a tenant may create them, are one page of 42 MB; and one pod has 5 MB.
#[test]
fn large_pods_do_not_cost_other_pods_their_names() {
    let server = serve(
        |path| match (is_pods(path), is_watch(path), path.contains("continue=next%2F1")) {
            (false, ..) => Reply::Status("403 Forbidden"),
            (true, true, _) => Reply::Open(String::new()),
            (true, false, false) => {
                let annotations = format!(r#","annotations":{{"x":"{}"}}"#, "y".repeat(1_400_000));
                let mut pods: Vec<_> = (0..30)
                    .map(|number| pod(&format!("large-{number}"), &annotations))
                    .collect();
                let container = r#"{"name":"cccccccccccccccccccccccccccccc"}"#;
                pods.push(format!(
                    r#"{{"metadata":{{"uid":"huge"}},"spec":{{"containers":[{}]}}}}"#,
                    vec![container; 120_000].join(",")
                ));
                pods.push(r#"{"metadata":{"uid":"odd","name":7}}"#.to_owned());
                Reply::Body(list(&pods, r#""resourceVersion":"7","continue":"next/1""#))
            }
            (true, false, true) => Reply::Body(list(&[pod("victim", "")], r#""resourceVersion":"7""#)),
        },
    );
    let run = run(server);
    let all = run.pods_until("end");
    assert_eq!(all.len(), 33, "{all:?}");
    assert_eq!((&*all[0], &*all[1], &*all[31]), ("start", "large-0", "victim"));
    let left_out = run.report(|report| match report {
        Report::LeftOut(left_out) => Some(left_out),
        _ => None,
    });
    assert_eq!((left_out.count, &*left_out.first), (2, "one takes more than 2 MiB"));
    run.report(|report| matches!(report, Report::Answered).then_some(()));
}

#[test]
fn watch_goes_on_where_it_ended_and_lists_again_when_it_expired() {
    let server = serve(|path| {
        if !is_pods(path) {
            return Reply::Status("403 Forbidden");
        }
        let event = |kind: &str, object: &str| format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n");
        let at = |version: &str| path.contains(&format!("resourceVersion={version}"));
        match is_watch(path) {
            false => Reply::Body(list(&[pod("a", "")], r#""resourceVersion":"7""#)),
            true if at("7") => Reply::Body(event("ADDED", &pod("b", r#","resourceVersion":"8""#))),
            true if at("8") => Reply::Body(
                event("DELETED", &pod("a", r#","resourceVersion":"9""#))
                    + &event(
                        "MODIFIED",
                        r#"{"metadata":{"uid":"b","resourceVersion":"10"},"spec":7}"#,
                    ),
            ),
            true if at("10") => Reply::Open(event("ERROR", r#"{"kind":"Status","code":410,"message":"too old"}"#)),
            true => panic!("{path}"),
        }
    });
    let run = run(server);
    let expected = ["start", "a", "end", "b", "delete a", "delete b"];
    assert_eq!(run.pods_until("delete b"), expected);
    assert_eq!(run.pods_until("end"), ["start", "a", "end"]);
}

#[test]
fn refresh_lists_this_nodes_pods_beside_the_watch() {
    let server = serve(|path| match (is_pods(path), is_watch(path)) {
        (false, _) => Reply::Status("403 Forbidden"),
        (true, true) => Reply::Open(String::new()),
        (true, false) if path.contains("fieldSelector=spec.nodeName%3Dn1") => {
            assert!(!path.contains("resourceVersion"), "{path}");
            Reply::Body(list(&[pod("here", "")], r#""resourceVersion":"9""#))
        }
        (true, false) => Reply::Body(list(&[pod("far", "")], r#""resourceVersion":"7""#)),
    });
    let run = run(server);
    assert_eq!(run.pods_until("end"), ["start", "far", "end"]);
    let of_node = ["start n1", "here", "end n1"];
    run.request.request();
    assert_eq!(run.pods_until("end n1"), of_node);
    let first = std::time::Instant::now();
    // These come at once, and are answered together a second later.
    (0..100).for_each(|_| run.request.request());
    assert_eq!(run.pods_until("end n1"), of_node);
    assert!(first.elapsed() > MIN_REFRESH_INTERVAL / 2, "at most once a second");
}
