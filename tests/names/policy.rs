//! A packet filter between pods, as a NetworkPolicy makes one.

use std::sync::{Arc, Mutex};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::Row;
use crate::fixture::{self, api_server, try_kubectl, value};
use crate::support::net;
use crate::support::tracer::{Tracer, TracerCommand};

/// Tests that change the node's packet filter, so they run one at a time.
pub const SEQUENTIAL: &[Row] = &[("policy::dropped_syns_have_both_names", dropped_syns_have_both_names)];

/// The test's rules of the node's packet filter. Dropping this removes them.
struct PacketFilter;

impl PacketFilter {
    /// Drops what is forwarded to this pod, and translates the Service's address to the pod's.
    fn new(pod: &str, service: &str) -> Self {
        let filter = Self;
        for command in [
            "add table inet kmesh_test".to_owned(),
            "delete table inet kmesh_test".to_owned(),
            "add table inet kmesh_test".to_owned(),
            "add chain inet kmesh_test service { type nat hook prerouting priority -100; }".to_owned(),
            format!("add rule inet kmesh_test service ip daddr {service} tcp dport 80 dnat ip to {pod}:8080"),
            "add chain inet kmesh_test pods { type filter hook forward priority 0; }".to_owned(),
            format!("add rule inet kmesh_test pods ip daddr {pod} tcp dport 8080 counter drop"),
        ] {
            net::run("nft", &[&command]);
        }
        // Packets between two pods of one bridge pass the rules, too. This is the kernel's default.
        net::set_sysctl("net.bridge.bridge-nf-call-iptables", "1");
        filter
    }

    /// Returns the number of packets dropped so far.
    fn dropped(&self) -> u64 {
        let chain = net::run("nft", &["list", "chain", "inet", "kmesh_test", "pods"]);
        let (_, rest) = chain.split_once("counter packets ").expect("a counter");
        rest.split(' ').next().unwrap().parse().expect("a count")
    }
}

impl Drop for PacketFilter {
    fn drop(&mut self) {
        _ = net::try_run("nft", &["delete", "table", "inet", "kmesh_test"]);
    }
}

fn value_of(line: &[u8]) -> Value {
    serde_json::from_slice(line).unwrap()
}

/// One command shows which packets were dropped between which pods, also if the client dials a Service.
fn dropped_syns_have_both_names() {
    fixture::start_cluster();
    let pod = value(&["-n", "shop", "pod", "-l", "app=web"], "{.items[0].status.podIP}");
    let service = value(&["-n", "shop", "service", "web"], "{.spec.clusterIP}");
    let filter = PacketFilter::new(&pod, &service);
    let kubeconfig = format!("--kubeconfig={}", api_server().join("kubeconfig").display());
    let lines = Arc::new(Mutex::new(Vec::new()));
    let args = ["-o", "json", "--drops", "--failed", &kubeconfig];
    let tracer: Tracer = TracerCommand::with_names(&args)
        .on_line({
            let lines = Arc::clone(&lines);
            move |line| lines.lock().unwrap().push(value_of(line))
        })
        .start();
    // Requests a page from this address in vain. Returns the record and the number of dropped packets if both ends have
    // their names.
    let request = |address: &str| {
        let (seen, before) = (lines.lock().unwrap().len(), filter.dropped());
        let url = format!("http://{address}/");
        let wget = "-n shop exec deploy/client -- /bin/busybox timeout 1 /bin/busybox wget -q -O-".split(' ');
        let wget: Vec<_> = wget.chain([url.as_str()]).collect();
        assert!(try_kubectl(&wget).is_err(), "the request is dropped");
        let packets = filter.dropped() - before;
        let of_request = |line: &&Value| line["type"] == "conn" && line["dst"]["ip"] == *pod;
        let mut found = None;
        fixture::wait_until("the request has its record", || {
            found = lines.lock().unwrap()[seen..].iter().find(of_request).cloned();
            found.is_some()
        });
        let found = found.unwrap();
        let name = |end: &str| found[end]["pod"].as_str().unwrap_or_default().to_owned();
        let is_named = name("src").starts_with("client-") && name("dst").starts_with("web-");
        is_named.then_some((found, packets))
    };
    for (address, dialled) in [
        (format!("{pod}:8080"), Value::Null),
        (format!("{service}:80"), json!(service)),
    ] {
        let mut result = None;
        fixture::wait_until("a record has both names", || {
            result = request(&address);
            result.is_some()
        });
        let (record, packets) = result.unwrap();
        assert_eq!(record["outcome"], "connect_aborted", "{record}");
        let expected = json!([{"direction": "sent", "reason": "NETFILTER_DROP", "packets": packets}]);
        assert_eq!(record["drops"], expected, "{record}");
        assert_eq!(record["original_dst"]["ip"], dialled, "{record}");
        assert_eq!(record["service"]["name"], "web", "{record}");
    }
    tracer.signal(Signal::SIGINT);
    let exit = tracer.wait_within(fixture::TEST_TIMEOUT);
    assert_eq!(exit.status.code(), Some(0), "{:?}", exit.stderr);
    let summary = lines.lock().unwrap().pop().unwrap();
    assert_eq!(summary["lost_records"], 0, "{summary}");
}
