//! A packet filter of the node, between two pods.

use serde_json::{Value, json};

use super::cluster::Cluster;
use super::identity::{Source, keep, traced};
use super::node::{Driver, Node, PORT, SERVICE_PORT, SHOP, until};
use crate::support::net;
use crate::support::sock::wait_until;

/// A policy on the node drops what one pod sends to another, by its address or through a Service. One command finds the
/// drops, with the names of both pods, although the kernel discards the translation with the SYN.
pub fn drop_between_pods_is_found_with_both_names() {
    let node = Node::new("forward");
    let web = node.pod(Driver::Cgroupfs, SHOP, "web");
    let db = node.pod(Driver::Systemd, SHOP, "db");
    db.listen();
    node.translate(&db);
    net::set_packet_filter_at("forward", &[&format!("ip daddr {} counter drop", db.ip)]);
    let cluster = Cluster::of([web.object(), db.object(), node.object(), node.service()]);
    let tracer = traced(&node, &cluster, Source::ApiServer, &["--drops", "--failed"]);
    keep(&tracer, &[&web]);
    let attempt = |to: &str| {
        let before = net::packet_filter_count("forward");
        let from = web.actor.run(&format!("connect_nonblocking t {}:0 {to}", web.ip));
        let port: u16 = from.rsplit(':').next().unwrap().trim().parse().unwrap();
        wait_until("the policy drops the SYN", || {
            net::packet_filter_count("forward") > before
        });
        web.actor.run("close t");
        let is_it = |value: &Value| value["src"]["port"] == port;
        let record = tracer.tracer.output.wait_matching(web.netns, 1, is_it).remove(0);
        assert_eq!(record["outcome"], "connect_aborted", "{record}");
        let dropped = &record["drops"][0];
        assert_eq!(
            (&dropped["direction"], &dropped["reason"]),
            (&json!("sent"), &json!("NETFILTER_DROP")),
            "{record}"
        );
        record
    };
    let to_pod = until("an attempt with the names of both pods", || {
        let record = attempt(&format!("{}:{PORT}", db.ip));
        (record["src"]["pod"] == *web.name && record["dst"]["pod"] == *db.name).then_some(record)
    });
    assert_eq!(to_pod["service"]["name"], "database", "{to_pod}");
    let to_service = attempt(&format!("{}:{SERVICE_PORT}", node.cluster_ip()));
    assert_eq!(to_service["src"]["pod"], *web.name, "{to_service}");
    assert_eq!(to_service["dst"]["pod"], *db.name, "{to_service}");
    assert_eq!(to_service["original_dst"]["ip"], *node.cluster_ip(), "{to_service}");
    assert_eq!(
        (&to_service["service"]["name"], &to_service["service"]["by"]),
        (&json!("database"), &json!("vip")),
        "{to_service}"
    );
    cluster.end();
    tracer.stop();
}
