//! A pod cannot take another pod's identity, or give its own away, with its own metadata.

use std::fs::{self, File};
use std::process::Command;

use serde_json::{Value, json};

use super::cluster::{Cluster, NODE_NAME};
use super::connection::{NO_DOUBT, PodConnection, catch_failure, check_names, has_client};
use super::fixture::{Fixture, NameSource, start_tracer, wait_for_names, watch};
use super::node::{ATTACKER_NAMESPACE, CgroupDriver, Node, VICTIM_NAMESPACE, retry_until};
use crate::support::tracer::binary;

/// Returns the annotations with which a tenant may claim the UID of another pod.
pub fn identity_claims(uid: &str) -> Vec<Value> {
    vec![
        json!({"kubernetes.io/config.hash": uid}),
        json!({"kubernetes.io/config.mirror": uid}),
        json!({"kubernetes.io/config.hash": uid, "kubernetes.io/config.mirror": uid}),
        json!({"kubernetes.io/config.hash": uid, "kubernetes.io/config.source": "file"}),
        json!({"kubernetes.io/config.hash": uid, "kubernetes.io/config.source": "api"}),
    ]
}

/// Returns the owner of a mirror pod, which a tenant can also set.
pub fn node_owner() -> Value {
    json!([{"kind": "Node", "name": NODE_NAME, "uid": "n", "controller": true, "apiVersion": "v1"}])
}

pub fn annotation_does_not_take_another_pods_identity() {
    let fixture = Fixture::new("identity");
    let attacker = fixture.attacker_pod("attacker");
    attacker.listen();
    let (web, db) = (&fixture.web, &fixture.db);
    let mut failures = Vec::new();
    for source in [NameSource::File, NameSource::Kubelet, NameSource::ApiServer] {
        for claim in identity_claims(&web.uid) {
            let mut object = attacker.annotated(claim.clone());
            object["metadata"]["ownerReferences"] = node_owner();
            let cluster = Cluster::with([web.object(), db.object(), object]);
            let tracer = start_tracer(&fixture.node, &cluster, source, &[]);
            watch(&tracer, &[web, db, &attacker]);
            let check = || {
                wait_for_names(&tracer, web, db);
                // The attacker keeps its own names.
                wait_for_names(&tracer, &attacker, db);
                wait_for_names(&tracer, web, &attacker);
            };
            failures.extend(catch_failure(check).map(|error| format!("{source:?}, {claim}: {error}")));
            cluster.stop();
            tracer.stop();
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

/// The tool does not ignore these annotations: a static pod has two UIDs, and its source vouches for the second one.
pub fn static_pod_is_named_by_its_second_uid() {
    let node = Node::new("static");
    let web = node.pod(CgroupDriver::Cgroupfs, VICTIM_NAMESPACE, "web");
    let ip = node.pod_ip(100);
    let mut db = node.describe_pod(
        node.actor_with_address(&ip),
        CgroupDriver::Cgroupfs,
        VICTIM_NAMESPACE,
        "db",
        &ip,
    );
    // A kubelet derives the UID of a static pod from its manifest, and names the cgroup with it.
    let hash = db.uid.replace('-', "");
    db.cgroup = node
        .cgroups
        .join(CgroupDriver::Cgroupfs.container(&hash, &db.container_id));
    db.start();
    db.listen();
    let kubelet_object = {
        let mut object =
            db.annotated(json!({"kubernetes.io/config.hash": hash, "kubernetes.io/config.source": "file"}));
        object["metadata"]["uid"] = hash.clone().into();
        object
    };
    let api_server_object = {
        let mut object = db.annotated(
            json!({"kubernetes.io/config.hash": hash, "kubernetes.io/config.mirror": hash,
            "kubernetes.io/config.source": "file"}),
        );
        object["metadata"]["ownerReferences"] = node_owner();
        object
    };
    for (source, object) in [
        (NameSource::Kubelet, kubelet_object),
        (NameSource::ApiServer, api_server_object),
    ] {
        let uid = object["metadata"]["uid"].as_str().unwrap().to_owned();
        let cluster = Cluster::with([web.object(), object]);
        let tracer = start_tracer(&node, &cluster, source, &[]);
        watch(&tracer, &[&web, &db]);
        retry_until("the names of the static pod", || {
            let record = PodConnection::make(&web, &db).inbound(&tracer);
            let names =
                ["pod", "namespace", "pod_uid"].map(|name| record["dst"][name].as_str().unwrap_or("-").to_owned());
            (names == [db.name.clone(), db.namespace.clone(), uid.clone()]).then_some(())
        });
        cluster.stop();
        tracer.stop();
    }
}

/// A replay finds the names of pods by their container ids and their addresses.
pub fn annotation_does_not_take_an_identity_in_a_replay() {
    let fixture = Fixture::new("replay");
    let attacker = fixture.attacker_pod("attacker");
    let (web, db, folder) = (&fixture.web, &fixture.db, &fixture.node.folder);
    let capture = folder.join("capture");
    let tracer = fixture.node.trace(&["--no-resolve", "-w", capture.to_str().unwrap()]);
    let connections = [web, &attacker].map(|client| PodConnection::make(client, db));
    tracer.stop();
    for claim in identity_claims(&web.uid) {
        let pods = folder.join("pods");
        Cluster::with([attacker.annotated(claim), web.object(), db.object()]).save(&pods);
        let lines = folder.join("lines");
        let status = Command::new(binary())
            .args(["-o", "json", "-r", capture.to_str().unwrap(), "--pods-file"])
            .arg(&pods)
            .stdout(File::create(&lines).unwrap())
            .status();
        assert!(status.unwrap().success());
        let text = fs::read_to_string(&lines).unwrap();
        let records: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        for connection in &connections {
            for direction in ["outbound", "inbound"] {
                let mut found = records
                    .iter()
                    .filter(|record| has_client(record, direction, &connection.from));
                let record = found
                    .next()
                    .unwrap_or_else(|| panic!("no {direction} record of {}", connection.from));
                check_names(record, "src", connection.client, false);
                check_names(record, "dst", db, false);
            }
        }
    }
}

/// For a moment, the source lists the pod's UID with another namespace. A tracer with `--from-namespace` must not
/// filter out the pod's connections afterwards.
pub fn temporary_wrong_name_does_not_exclude_a_pod() {
    let fixture = Fixture::new("moment");
    let (web, db, cluster) = (&fixture.web, &fixture.db, &fixture.cluster);
    let wrong = {
        let mut object = web.object();
        object["metadata"]["namespace"] = ATTACKER_NAMESPACE.into();
        object["metadata"]["name"] = "wrong".into();
        object
    };
    cluster.delete(&web.object());
    cluster.put(wrong.clone());
    let unfiltered = start_tracer(&fixture.node, cluster, NameSource::ApiServer, &[]);
    let args = ["--from-namespace", VICTIM_NAMESPACE];
    let filtered = start_tracer(&fixture.node, cluster, NameSource::ApiServer, &args);
    watch(&unfiltered, &[web, db]);
    watch(&filtered, &[web, db]);
    let client_name = || PodConnection::make(web, db).outbound(&unfiltered)["src"]["pod"].clone();
    retry_until("the wrong name", || (client_name() == "wrong").then_some(()));
    // More connections, so that the other tracer has used the wrong name too.
    (0..5).for_each(|_| _ = client_name());
    cluster.delete(&wrong);
    cluster.put(web.object());
    retry_until("the right name", || (client_name() == *web.name).then_some(()));
    // The filtered tracer may get the right name a moment later.
    retry_until("records of the filtered tracer", || {
        PodConnection::make(web, db).outbound(&unfiltered);
        (!filtered.output.records(web.netns).is_empty()).then_some(())
    });
    (0..5).for_each(|_| PodConnection::make(web, db).check(&filtered, NO_DOUBT));
    unfiltered.stop();
    filtered.stop();
}
