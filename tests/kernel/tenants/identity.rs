//! A pod cannot take another pod's identity, nor give its own away, by what it writes into itself.

use std::fs::{self, File};
use std::process::Command;
use std::sync::Arc;

use serde_json::{Value, json};

use super::cluster::{Cluster, NODE_NAME};
use super::node::{Driver, MALL, Node, NodeTracer, Pod, SHOP, until};
use super::traffic::{CERTAIN, Call, check_end, failure};
use crate::support::tracer::binary;

/// A source of names.
#[derive(Clone, Copy, Debug)]
pub enum Source {
    /// `--pods-file`
    File,
    /// `--kubelet`
    Kubelet,
    /// `--kubeconfig`
    ApiServer,
}

/// Starts a tracer that is told of these objects by this source.
pub fn traced(node: &Node, cluster: &Arc<Cluster>, source: Source, args: &[&str]) -> NodeTracer {
    let file = node.folder.join(format!("{source:?}"));
    let flag = match source {
        Source::File => {
            cluster.save(&file);
            format!("--pods-file={}", file.display())
        }
        Source::Kubelet => format!("--kubelet={}", cluster.kubelet()),
        Source::ApiServer => {
            cluster.api_server(&file);
            format!("--kubeconfig={}", file.display())
        }
    };
    let tracer = node.trace(&[&[&*flag], args].concat());
    if let Source::File = source {
        tracer.tracer.wait_stderr("kmesh-trace: names come from");
    }
    tracer
}

/// Makes connections until their records have the names that they must have in the end: the source has answered.
pub fn wait_for_names(tracer: &NodeTracer, client: &Pod, server: &Pod) {
    let tracer = &tracer.tracer;
    until("the first names", || {
        let call = Call::open(client, server);
        call.close();
        let records = [call.outbound(tracer), call.inbound(tracer)];
        // A name may be absent until then, but it is never another pod's.
        for record in &records {
            check_end(record, "src", client, true);
            check_end(record, "dst", server, true);
        }
        let is_named = |record: &Value| !record["src"]["pod"].is_null() && !record["dst"]["pod"].is_null();
        records.iter().all(is_named).then(|| call.check(tracer, CERTAIN))
    });
}

/// Keeps the records of these pods.
pub fn keep(tracer: &NodeTracer, pods: &[&Pod]) {
    pods.iter().for_each(|pod| tracer.tracer.output.watch(pod.netns));
}

/// What a tenant may write into its own pod to claim the UID of another pod.
pub fn claims(uid: &str) -> Vec<Value> {
    vec![
        json!({"kubernetes.io/config.hash": uid}),
        json!({"kubernetes.io/config.mirror": uid}),
        json!({"kubernetes.io/config.hash": uid, "kubernetes.io/config.mirror": uid}),
        json!({"kubernetes.io/config.hash": uid, "kubernetes.io/config.source": "file"}),
        json!({"kubernetes.io/config.hash": uid, "kubernetes.io/config.source": "api"}),
    ]
}

pub fn annotation_does_not_take_another_pods_identity() {
    let node = Node::new("identity");
    let web = node.pod(Driver::Cgroupfs, SHOP, "web");
    let db = node.pod(Driver::Systemd, SHOP, "db");
    let thief = node.pod(Driver::Cgroupfs, MALL, "thief");
    db.listen();
    thief.listen();
    let mut wrong = Vec::new();
    for source in [Source::File, Source::Kubelet, Source::ApiServer] {
        for claim in claims(&web.uid) {
            let mut object = thief.annotated(claim.clone());
            // Anybody may name an owner, too.
            object["metadata"]["ownerReferences"] =
                json!([{"kind": "Node", "name": NODE_NAME, "uid": "n", "controller": true}]);
            let cluster = Cluster::of([web.object(), db.object(), object]);
            let tracer = traced(&node, &cluster, source, &[]);
            keep(&tracer, &[&web, &db, &thief]);
            let check = || {
                wait_for_names(&tracer, &web, &db);
                // Its own names stay its own.
                wait_for_names(&tracer, &thief, &db);
                wait_for_names(&tracer, &web, &thief);
            };
            wrong.extend(failure(check).map(|why| format!("{source:?}, {claim}: {why}")));
            cluster.end();
            tracer.stop();
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The rule is no ban of the annotations: a static pod has two UIDs, and its source vouches for the second.
pub fn static_pod_is_named_by_its_second_uid() {
    let node = Node::new("static");
    let web = node.pod(Driver::Cgroupfs, SHOP, "web");
    let mut db = node.unplaced_pod(
        node.wired_actor(&node.pod_ip(100)),
        Driver::Cgroupfs,
        SHOP,
        "db",
        &node.pod_ip(100),
    );
    // As a kubelet makes it of the manifest.
    let hash = db.uid.replace('-', "");
    db.cgroup = node.cgroups.join(Driver::Cgroupfs.container(&hash, &db.id));
    db.start();
    db.listen();
    let of_kubelet = {
        let mut object =
            db.annotated(json!({"kubernetes.io/config.hash": hash, "kubernetes.io/config.source": "file"}));
        object["metadata"]["uid"] = hash.clone().into();
        object
    };
    let of_api_server = {
        let mut object = db.annotated(
            json!({"kubernetes.io/config.hash": hash, "kubernetes.io/config.mirror": hash,
            "kubernetes.io/config.source": "file"}),
        );
        object["metadata"]["ownerReferences"] =
            json!([{"kind": "Node", "name": NODE_NAME, "uid": "n", "controller": true, "apiVersion": "v1"}]);
        object
    };
    for (source, object) in [(Source::Kubelet, of_kubelet), (Source::ApiServer, of_api_server)] {
        let uid = object["metadata"]["uid"].as_str().unwrap().to_owned();
        let cluster = Cluster::of([web.object(), object]);
        let tracer = traced(&node, &cluster, source, &[]);
        keep(&tracer, &[&web, &db]);
        until("the names of the static pod", || {
            let call = Call::open(&web, &db);
            call.close();
            let record = call.inbound(&tracer.tracer);
            let names =
                ["pod", "namespace", "pod_uid"].map(|name| record["dst"][name].as_str().unwrap_or("-").to_owned());
            (names == [db.name.clone(), db.namespace.clone(), uid.clone()]).then_some(())
        });
        cluster.end();
        tracer.stop();
    }
}

/// A replay names the pods by the ids of their containers and by their addresses.
pub fn annotation_does_not_take_an_identity_in_a_replay() {
    let node = Node::new("replay");
    let web = node.pod(Driver::Cgroupfs, SHOP, "web");
    let db = node.pod(Driver::Systemd, SHOP, "db");
    let thief = node.pod(Driver::Cgroupfs, MALL, "thief");
    db.listen();
    let capture = node.folder.join("capture");
    let tracer = node.trace(&["--no-resolve", "-w", capture.to_str().unwrap()]);
    keep(&tracer, &[&web, &db, &thief]);
    let calls = [&web, &thief].map(|client| {
        let call = Call::open(client, &db);
        call.close();
        call.from
    });
    tracer.stop();
    for claim in claims(&web.uid) {
        let pods = node.folder.join("pods");
        Cluster::of([thief.annotated(claim.clone()), web.object(), db.object()]).save(&pods);
        let lines = node.folder.join("lines");
        let status = Command::new(binary())
            .args(["-o", "json", "-r", capture.to_str().unwrap(), "--pods-file"])
            .arg(&pods)
            .stdout(File::create(&lines).unwrap())
            .status();
        assert!(status.unwrap().success());
        let text = fs::read_to_string(&lines).unwrap();
        let records: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        for (from, client) in calls.iter().zip([&web, &thief]) {
            for direction in ["outbound", "inbound"] {
                let is_it = |record: &&Value| {
                    let src = &record["src"];
                    let address = format!("{}:{}", src["ip"].as_str().unwrap_or_default(), src["port"]);
                    record["direction"] == direction && address == *from
                };
                let record = records
                    .iter()
                    .find(is_it)
                    .unwrap_or_else(|| panic!("{direction} of {from}"));
                check_end(record, "src", client, false);
                check_end(record, "dst", &db, false);
            }
        }
    }
}

/// For a moment the source has another namespace for the pod's UID.
pub fn wrong_name_of_a_moment_does_not_exclude_a_pod() {
    let node = Node::new("moment");
    let web = node.pod(Driver::Cgroupfs, SHOP, "web");
    let db = node.pod(Driver::Systemd, SHOP, "db");
    db.listen();
    let wrong = {
        let mut object = web.object();
        object["metadata"]["namespace"] = MALL.into();
        object["metadata"]["name"] = "wrong".into();
        object
    };
    let cluster = Cluster::of([wrong.clone(), db.object()]);
    let all = traced(&node, &cluster, Source::ApiServer, &[]);
    let of_shop = traced(&node, &cluster, Source::ApiServer, &["--from-namespace", SHOP]);
    keep(&all, &[&web, &db]);
    keep(&of_shop, &[&web, &db]);
    let call = || {
        let call = Call::open(&web, &db);
        call.close();
        call
    };
    // A few, so that whatever is decided by the wrong name has been decided.
    until("the wrong name", || {
        (call().outbound(&all.tracer)["src"]["pod"] == "wrong").then_some(())
    });
    (0..5).for_each(|_| _ = call().outbound(&all.tracer));
    cluster.delete(&wrong);
    cluster.put(web.object());
    until("the right name", || {
        (call().outbound(&all.tracer)["src"]["pod"] == *web.name).then_some(())
    });
    // The other tracer may learn it a moment later.
    until("the connections of shop are shown again", || {
        let from: std::net::SocketAddr = call().from.parse().unwrap();
        all.tracer
            .output
            .wait(web.netns, |records| {
                records
                    .iter()
                    .any(|rec| rec.value["src"]["port"] == from.port())
                    .then_some(())
            })
            .unwrap();
        (!of_shop.tracer.output.records(web.netns).is_empty()).then_some(())
    });
    (0..5).for_each(|_| call().check(&of_shop.tracer, CERTAIN));
    cluster.end();
    all.stop();
    of_shop.stop();
}
