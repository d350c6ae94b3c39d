//! A packet filter of the node, between two pods.

use serde_json::json;

use super::cluster::Cluster;
use super::identity::{Source, keep, traced};
use super::node::{Driver, Node, SERVICE_PORT, SHOP, until};
use crate::support::net;
use crate::support::sock::wait_until;

/// A policy on the node drops what one pod sends to the Service of another. One command finds the drop, with both pods' names.
pub fn drop_on_the_way_to_a_service_is_found_with_both_names() {
    let node = Node::new("forward");
    let web = node.pod(Driver::Cgroupfs, SHOP, "web");
    let db = node.pod(Driver::Systemd, SHOP, "db");
    db.listen();
    node.translate(&db);
    net::set_packet_filter_at("forward", &[&format!("ip daddr {} counter drop", db.ip)]);
    let cluster = Cluster::of([web.object(), db.object(), node.object(), node.service()]);
    let tracer = traced(&node, &cluster, Source::ApiServer, &["--drops", "--failed"]);
    keep(&tracer, &[&web]);
    let record = until("an attempt with the names of both pods", || {
        let before = net::packet_filter_count("forward");
        let to = format!("{}:{SERVICE_PORT}", node.cluster_ip());
        let from = web.actor.run(&format!("connect_nonblocking t {}:0 {to}", web.ip));
        let port: u16 = from.rsplit(':').next().unwrap().trim().parse().unwrap();
        wait_until("the policy drops the SYN", || {
            net::packet_filter_count("forward") > before
        });
        web.actor.run("close t");
        let mut records = tracer
            .tracer
            .output
            .wait_matching(web.netns, 1, |value| value["src"]["port"] == port);
        let record = records.remove(0);
        let dropped = &record["drops"][0];
        assert_eq!(
            (&dropped["direction"], &dropped["reason"]),
            (&json!("sent"), &json!("NETFILTER_DROP")),
            "{record}"
        );
        (record["src"]["pod"] == *web.name && record["dst"]["pod"] == *db.name).then_some(record)
    });
    assert_eq!(record["outcome"], "connect_aborted", "{record}");
    assert_eq!(record["original_dst"]["ip"], *node.cluster_ip(), "{record}");
    assert_eq!(record["service"]["name"], "database", "{record}");
    cluster.end();
    tracer.stop();
}
