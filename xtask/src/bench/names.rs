//! Measures the name store with 100,000 pods and 20,000 Services: memory, look-ups and updates.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use kmesh_trace::names::fixture::{self, PODS, REPORTED_AT, SERVICES};
use kmesh_trace::names::objects::{self, Writer};
use kmesh_trace::names::store::{LocalContext, Store};
use kmesh_trace::names::update::{Change, Key, Owner, PodObject, SourceId, SourceUpdate};
use kmesh_trace::record::{Direction, Record, WallTime};
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;

use super::replay;

/// The changes per second of the CPU share that is printed.
const CHANGES_PER_SECOND: f64 = 1_000.0;

#[derive(clap::Args)]
pub struct Args {
    /// The capture with the sample record
    #[arg(long, value_name = "FILE", default_value = "tests/data/incident.jsonl.zst")]
    capture: PathBuf,
    /// The number of look-ups of random pods
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    lookups: u32,
    /// The number of changes of random pods, as JSON of the API server
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    changes: u32,
}

/// Prints times and memory.
pub fn run(args: &Args) -> Result<ExitCode> {
    let bytes = fs::read(&args.capture).with_context(|| format!("cannot read {}", args.capture.display()))?;
    let (_, sample) = replay::read(&bytes)?;
    let record = Record {
        direction: Direction::Outbound,
        start: Some(WallTime(REPORTED_AT.0 + 1)),
        ..sample.into_iter().next().context("the capture has no record")?
    };
    let mut next = super::random();
    let mut below = |limit: u32| (next() % u64::from(limit)) as u32;
    println!("{PODS} pods, {SERVICES} Services; CPU time of one thread");

    let before = super::memory_mib("VmRSS")?;
    let began = cpu_ns();
    let mut store = fixture::store(fixture::objects());
    line("add all objects", (cpu_ns() - began) / 1e6, "ms");
    line("memory", super::memory_mib("VmRSS")? - before, "MiB");

    let began = cpu_ns();
    let found = (0..args.lookups).filter(|_| store.is_pod_address(fixture::pod_ip(below(PODS)), &record));
    let found = found.count();
    line(
        "look-up of an address",
        (cpu_ns() - began) / f64::from(args.lookups),
        "ns",
    );
    ensure!(found == args.lookups as usize, "the store lacks some pods");

    for (what, pods) in [("of a thousand pods", 1_000), ("of all pods", PODS)] {
        // The first look-up of a pod derives its workload.
        (0..pods).try_for_each(|pod| name(&mut store, &record, pod, pod))?;
        let began = cpu_ns();
        (0..args.lookups).try_for_each(|_| name(&mut store, &record, below(pods), below(pods)))?;
        let what = format!("names of a record, {what}");
        line(&what, (cpu_ns() - began) / f64::from(args.lookups), "ns");
    }
    line("memory after all look-ups", super::memory_mib("VmRSS")? - before, "MiB");

    let changed: Vec<_> = (0..args.changes).map(|number| (below(PODS), number)).collect();
    let json: Vec<_> = changed
        .iter()
        .map(|&(pod, number)| document(&replacement(pod, number)))
        .collect();
    let began = cpu_ns();
    for (&(pod, number), json) in changed.iter().zip(&json) {
        let at = WallTime(REPORTED_AT.0 + i64::from(number));
        let object = objects::parse("Pod", json.as_bytes(), Writer::ApiServer)?.context("no pod")?;
        for change in [Change::Delete(Key::Pod(fixture::pod(pod).uid)), Change::Upsert(object)] {
            store.apply(&SourceUpdate {
                source: SourceId(0),
                at,
                change,
            });
        }
    }
    let each_ns = (cpu_ns() - began) / f64::from(args.changes);
    line("replacement of a pod", each_ns / 1e3, "µs");
    line(
        "1,000 per second, of a core",
        each_ns * CHANGES_PER_SECOND / 1e9 * 100.0,
        "%",
    );
    Ok(ExitCode::SUCCESS)
}

fn line(what: &str, value: f64, unit: &str) {
    println!("{what:<36} {value:>10.1} {unit}");
}

/// Adds the names of both ends and of the Service to a record.
fn name(store: &mut Store, record: &Record, client: u32, server: u32) -> Result<()> {
    let mut record = Record {
        src: SocketAddr::new(fixture::pod_ip(client), 40_000),
        dst: SocketAddr::new(fixture::pod_ip(server), 8080),
        ..record.clone()
    };
    let local = LocalContext {
        is_netns_of_root: true,
        ..LocalContext::default()
    };
    let now = record.time;
    store.annotate(&mut record, &local, now);
    let names = &record.names;
    let is_named = names.src.pod.is_some() && names.dst.pod.is_some() && names.service.is_some();
    ensure!(is_named, "{client} or {server} has no name");
    Ok(())
}

/// Returns another pod with the same address.
fn replacement(pod: u32, number: u32) -> PodObject {
    PodObject {
        uid: format!("99999999-1111-4111-8111-{number:012x}"),
        ..fixture::pod(pod)
    }
}

/// Returns the pod as JSON of the API server, without fields that the tool ignores.
fn document(pod: &PodObject) -> String {
    let owner = match &pod.owner {
        Owner::By(owner) => {
            let (kind, name, uid) = (&owner.kind, &owner.name, &owner.uid);
            json!([{"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": uid, "controller": true}])
        }
        Owner::Unknown | Owner::Nobody => json!([]),
    };
    let labels: serde_json::Map<_, _> = (pod.labels.iter().flatten())
        .map(|(key, value)| (key.clone(), value.as_str().into()))
        .collect();
    let containers = pod.containers.iter().map(|container| {
        let ports = container.ports.iter();
        let ports = ports.map(|(name, port)| json!({"name": name, "containerPort": port, "protocol": "TCP"}));
        json!({"name": container.name, "image": "registry.example/image:1", "ports": ports.collect::<Vec<_>>()})
    });
    let statuses = pod.containers.iter().map(|container| {
        let id = container.id.map_or(String::new(), |id| format!("containerd://{id}"));
        json!({"name": container.name, "containerID": id, "ready": true, "restartCount": 0})
    });
    let ips: Vec<_> = pod.ips.iter().map(|ip| json!({"ip": ip})).collect();
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": pod.name, "namespace": pod.namespace, "uid": pod.uid, "labels": labels, "ownerReferences": owner,
        },
        "spec": {
            "nodeName": pod.node, "serviceAccountName": pod.service_account,
            "containers": containers.collect::<Vec<_>>(),
        },
        "status": {
            "phase": "Running", "startTime": "1970-01-01T00:00:00Z", "podIP": pod.ips.first(), "podIPs": ips,
            "containerStatuses": statuses.collect::<Vec<_>>(),
        },
    })
    .to_string()
}

/// Returns the CPU time of this thread in ns.
fn cpu_ns() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}
