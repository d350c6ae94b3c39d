//! A packet filter of the node drops packets between two pods.

use serde_json::{Value, json};

use super::fixture::{Fixture, NameSource, start_tracer, watch};
use super::node::{SERVICE_PORT, retry_until};
use crate::support::net;
use crate::support::sock::wait_until;

/// The node's packet filter drops the SYN of one pod to another, by the pod's address and through a Service. With
/// `--drops --failed`, the records show the drop and the names of both pods, although the kernel discards the
/// translated address together with the SYN.
pub fn drop_between_pods_is_found_with_both_names() {
    let fixture = Fixture::new("forward");
    fixture.add_service();
    let (web, db) = (&fixture.web, &fixture.db);
    net::set_packet_filter_at("forward", &[&format!("ip daddr {} counter drop", db.ip)]);
    let args = ["--drops", "--failed"];
    let tracer = start_tracer(&fixture.node, &fixture.cluster, NameSource::ApiServer, &args);
    watch(&tracer, &[web]);
    let attempt = |destination: &str| {
        let before = net::packet_filter_count("forward");
        let command = format!("connect_nonblocking t {}:0 {destination}", web.ip);
        let from = web.actor.run(&command);
        let port: u16 = from.rsplit(':').next().unwrap().trim().parse().unwrap();
        wait_until("the packet filter drops the SYN", || {
            net::packet_filter_count("forward") > before
        });
        web.actor.run("close t");
        let has_port = |value: &Value| value["src"]["port"] == port;
        let record = tracer.output.wait_matching(web.netns, 1, has_port).remove(0);
        assert_eq!(record["outcome"], "connect_aborted", "{record}");
        let drop = &record["drops"][0];
        assert_eq!(
            (&drop["direction"], &drop["reason"]),
            (&json!("sent"), &json!("NETFILTER_DROP")),
            "{record}"
        );
        record
    };
    let to_pod = retry_until("an attempt with the names of both pods and of the Service", || {
        let record = attempt(&db.server());
        let has_names = record["src"]["pod"] == *web.name && record["dst"]["pod"] == *db.name;
        (has_names && record["service"]["name"] == "database").then_some(record)
    });
    assert_eq!(to_pod["original_dst"], Value::Null, "{to_pod}");
    let to_service = attempt(&format!("{}:{SERVICE_PORT}", fixture.node.cluster_ip()));
    assert_eq!(to_service["src"]["pod"], *web.name, "{to_service}");
    assert_eq!(to_service["dst"]["pod"], *db.name, "{to_service}");
    assert_eq!(
        to_service["original_dst"]["ip"],
        *fixture.node.cluster_ip(),
        "{to_service}"
    );
    assert_eq!(
        (&to_service["service"]["name"], &to_service["service"]["by"]),
        (&json!("database"), &json!("vip")),
        "{to_service}"
    );
    tracer.stop();
}
