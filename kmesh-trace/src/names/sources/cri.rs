//! Names from the container runtime: this node's pods as CRI tells of them.
//!
//! The messages are those of `runtime.v1` (`runtime.v1alpha2` has the same), without the fields that naming does not need.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::uri::PathAndQuery;
use prost::Message;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

use super::error::{self, Failure};
use crate::names::update::{ContainerObject, Owner, PodObject};
use crate::record::{ContainerId, WallTime};

/// The longest answer. The kubelet takes 16 MiB.
const MOST_BYTES: usize = 64 << 20;
/// The longest time to wait for an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Labels by which the kubelet finds its pods again; no pod has them itself.
const OF_KUBELET: &str = "io.kubernetes.pod.";

#[derive(Clone, PartialEq, Message)]
struct Nothing {}

#[derive(Clone, PartialEq, Message)]
struct Sandboxes {
    #[prost(message, repeated, tag = "1")]
    items: Vec<Sandbox>,
}

#[derive(Clone, PartialEq, Message)]
struct Sandbox {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(message, optional, tag = "2")]
    metadata: Option<SandboxMetadata>,
    /// 0 is ready.
    #[prost(int32, tag = "3")]
    state: i32,
    /// Nanoseconds since the epoch.
    #[prost(int64, tag = "4")]
    created_at: i64,
    #[prost(btree_map = "string, string", tag = "5")]
    labels: BTreeMap<String, String>,
    #[prost(btree_map = "string, string", tag = "6")]
    annotations: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
struct SandboxMetadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    uid: String,
    #[prost(string, tag = "3")]
    namespace: String,
}

#[derive(Clone, PartialEq, Message)]
struct SandboxStatusRequest {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, Message)]
struct SandboxStatusResponse {
    #[prost(message, optional, tag = "1")]
    status: Option<SandboxStatus>,
}

#[derive(Clone, PartialEq, Message)]
struct SandboxStatus {
    #[prost(message, optional, tag = "5")]
    network: Option<Network>,
    #[prost(message, optional, tag = "6")]
    linux: Option<Linux>,
}

#[derive(Clone, PartialEq, Message)]
struct Network {
    #[prost(string, tag = "1")]
    ip: String,
    #[prost(message, repeated, tag = "2")]
    additional: Vec<Ip>,
}

#[derive(Clone, PartialEq, Message)]
struct Ip {
    #[prost(string, tag = "1")]
    ip: String,
}

#[derive(Clone, PartialEq, Message)]
struct Linux {
    #[prost(message, optional, tag = "1")]
    namespaces: Option<Namespaces>,
}

#[derive(Clone, PartialEq, Message)]
struct Namespaces {
    #[prost(message, optional, tag = "2")]
    options: Option<NamespaceOptions>,
}

#[derive(Clone, PartialEq, Message)]
struct NamespaceOptions {
    /// 2 is the node's own.
    #[prost(int32, tag = "1")]
    network: i32,
}

#[derive(Clone, PartialEq, Message)]
struct Containers {
    #[prost(message, repeated, tag = "1")]
    items: Vec<Container>,
}

#[derive(Clone, PartialEq, Message)]
struct Container {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(string, tag = "2")]
    sandbox: String,
    #[prost(message, optional, tag = "3")]
    metadata: Option<ContainerMetadata>,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerMetadata {
    #[prost(string, tag = "1")]
    name: String,
}

const READY: i32 = 0;
const OF_NODE: i32 = 2;

/// What a sandbox keeps for as long as it is there.
#[derive(Clone, Debug, Default)]
struct Addresses {
    ips: Vec<IpAddr>,
    host_network: bool,
}

impl From<SandboxStatus> for Addresses {
    fn from(status: SandboxStatus) -> Self {
        let host_network = status
            .linux
            .and_then(|linux| linux.namespaces?.options)
            .is_some_and(|options| options.network == OF_NODE);
        let network = status.network.unwrap_or_default();
        let additional = network.additional.iter().map(|one| one.ip.as_str());
        let ips = std::iter::once(network.ip.as_str()).chain(additional);
        Self {
            // Of the node's network the address is the node's.
            ips: ips
                .filter(|_| !host_network)
                .filter_map(|ip| ip.parse::<IpAddr>().ok())
                .map(|ip| ip.to_canonical())
                .collect(),
            host_network,
        }
    }
}

/// Versions of the API, the newest first.
const SERVICES: [&str; 2] = ["runtime.v1.RuntimeService", "runtime.v1alpha2.RuntimeService"];

/// A container runtime that can be asked.
pub struct Source {
    sockets: Vec<PathBuf>,
    runtime: Option<Runtime>,
    /// Of the sandboxes that are ready.
    addresses: HashMap<String, Addresses>,
}

impl Source {
    /// The first runtime that listens on one of these.
    pub fn new(sockets: &[PathBuf]) -> Self {
        Self {
            sockets: sockets.to_owned(),
            runtime: None,
            addresses: HashMap::new(),
        }
    }

    /// The pods of this node that the runtime has.
    pub async fn pods(&mut self) -> Result<Vec<PodObject>, Failure> {
        let pods = self.list().await;
        if pods.is_err() {
            // It may have been started anew.
            self.runtime = None;
            self.addresses.clear();
        }
        pods
    }

    /// Until something happened to a container. Forever, where the runtime does not tell.
    pub async fn event(&self) {
        match &self.runtime {
            Some(runtime) => runtime.events.notified().await,
            None => std::future::pending().await,
        }
    }

    async fn list(&mut self) -> Result<Vec<PodObject>, Failure> {
        let mut runtime = match self.runtime.take() {
            Some(runtime) => runtime,
            None => Runtime::connect(&self.sockets).await?,
        };
        let sandboxes: Sandboxes = runtime.ask("ListPodSandbox", Nothing {}).await?;
        let containers: Containers = runtime.ask("ListContainers", Nothing {}).await?;
        let mut addresses = HashMap::new();
        for sandbox in sandboxes.items.iter().filter(|sandbox| sandbox.state == READY) {
            let known = self.addresses.remove(&sandbox.id);
            let known = match known.filter(|known| known.host_network || !known.ips.is_empty()) {
                Some(known) => known,
                None => match runtime.addresses(&sandbox.id).await? {
                    Some(new) => new,
                    None => continue,
                },
            };
            addresses.insert(sandbox.id.clone(), known);
        }
        self.addresses = addresses;
        self.runtime = Some(runtime);
        Ok(pods(sandboxes.items, containers.items, &self.addresses))
    }
}

/// A pod may have had several sandboxes, one after the other: the latest tells of its addresses, all of its containers.
fn pods(sandboxes: Vec<Sandbox>, containers: Vec<Container>, addresses: &HashMap<String, Addresses>) -> Vec<PodObject> {
    let mut of_sandbox: HashMap<String, Vec<ContainerObject>> = HashMap::new();
    for container in containers {
        of_sandbox.entry(container.sandbox).or_default().push(ContainerObject {
            name: container.metadata.unwrap_or_default().name,
            id: ContainerId::new(&container.id),
            ports: Vec::new(),
        });
    }
    let mut pods: HashMap<String, (i64, PodObject)> = HashMap::new();
    for sandbox in sandboxes {
        let Some(metadata) = sandbox.metadata else { continue };
        let mut containers = of_sandbox.remove(&sandbox.id).unwrap_or_default();
        let known = addresses.get(&sandbox.id).cloned();
        let of_file = sandbox
            .annotations
            .get("kubernetes.io/config.source")
            .is_some_and(|source| source != "api");
        let hash = sandbox.annotations.get("kubernetes.io/config.hash").filter(|_| of_file);
        let mut pod = PodObject {
            uid: metadata.uid,
            static_uid: hash.cloned(),
            namespace: metadata.namespace,
            name: metadata.name,
            labels: Some(
                sandbox
                    .labels
                    .into_iter()
                    .filter(|(key, _)| !key.starts_with(OF_KUBELET))
                    .collect(),
            ),
            node: None,
            host_network: known.as_ref().map(|known| known.host_network),
            service_account: None,
            owner: Owner::Unknown,
            ips: known.map(|known| known.ips).unwrap_or_default(),
            started: Some(WallTime(sandbox.created_at)),
            terminal: false,
            containers: Vec::new(),
        };
        match pods.get_mut(&pod.uid) {
            Some((created_at, other)) if *created_at >= sandbox.created_at => other.containers.append(&mut containers),
            other => {
                if let Some((_, other)) = other {
                    containers.append(&mut other.containers);
                }
                pod.containers = containers;
                pods.insert(pod.uid.clone(), (sandbox.created_at, pod));
            }
        }
    }
    pods.into_values().map(|(_, pod)| pod).collect()
}

struct Runtime {
    client: Grpc<Channel>,
    service: &'static str,
    events: Arc<Notify>,
    subscription: JoinHandle<()>,
}

impl Runtime {
    async fn connect(sockets: &[PathBuf]) -> Result<Self, Failure> {
        let mut failure = Failure::new("no socket of a container runtime is there".to_owned());
        for socket in sockets {
            match Self::connect_to(socket).await {
                Ok(runtime) => return Ok(runtime),
                // Of several places the one where something is wrong says more than those where nothing is.
                Err(why) if socket.exists() || sockets.len() == 1 => failure = why,
                Err(_) => {}
            }
        }
        Err(failure)
    }

    async fn connect_to(socket: &Path) -> Result<Self, Failure> {
        let shown = socket.display();
        let endpoint = Endpoint::from_shared(format!("unix://{shown}"));
        let endpoint = endpoint.map_err(|error| Failure::new(error.to_string()).at(&shown))?;
        let channel = endpoint
            .connect_timeout(PATIENCE)
            .connect()
            .await
            .map_err(|error| error::of(&error).at(&shown))?;
        let mut client = Grpc::new(channel).max_decoding_message_size(MOST_BYTES);
        let mut spoken = SERVICES[0];
        for service in SERVICES {
            spoken = service;
            match call::<_, Nothing>(&mut client, service, "Version", Nothing {}).await {
                Ok(_) => break,
                Err(status) if status.code() == Code::Unimplemented => {}
                Err(status) => return Err(failure(&status).at(&shown)),
            }
        }
        let events = Arc::new(Notify::new());
        Ok(Self {
            subscription: tokio::spawn(subscribe(client.clone(), spoken, Arc::clone(&events))),
            client,
            service: spoken,
            events,
        })
    }

    async fn addresses(&mut self, id: &str) -> Result<Option<Addresses>, Failure> {
        let request = SandboxStatusRequest { id: id.to_owned() };
        match self.call("PodSandboxStatus", request).await {
            Ok(SandboxStatusResponse { status }) => Ok(Some(status.unwrap_or_default().into())),
            // It went between the two questions.
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(failure(&status)),
        }
    }

    async fn ask<Q, A>(&mut self, method: &str, question: Q) -> Result<A, Failure>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        self.call(method, question).await.map_err(|status| failure(&status))
    }

    async fn call<Q, A>(&mut self, method: &str, question: Q) -> Result<A, Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        call(&mut self.client, self.service, method, question).await
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        self.subscription.abort();
    }
}

async fn call<Q, A>(client: &mut Grpc<Channel>, service: &str, method: &str, question: Q) -> Result<A, Status>
where
    Q: Message + 'static,
    A: Message + Default + 'static,
{
    let path = path(service, method)?;
    let answer = async {
        ready(client).await?;
        client
            .unary(Request::new(question), path, ProstCodec::<Q, A>::default())
            .await
    };
    let answer = tokio::time::timeout(PATIENCE, answer).await;
    let answer = answer.map_err(|_| Status::deadline_exceeded(format!("no answer for {} s", PATIENCE.as_secs())))?;
    answer.map(tonic::Response::into_inner)
}

async fn ready(client: &mut Grpc<Channel>) -> Result<(), Status> {
    client
        .ready()
        .await
        .map_err(|error| Status::unavailable(error::of(&error).to_string()))
}

fn path(service: &str, method: &str) -> Result<PathAndQuery, Status> {
    let path = format!("/{service}/{method}").parse::<PathAndQuery>();
    path.map_err(|error| Status::internal(error.to_string()))
}

/// Tells of each event of a container, where the runtime streams them; the first answer comes with the first of them.
async fn subscribe(mut client: Grpc<Channel>, service: &'static str, events: Arc<Notify>) {
    let Ok(path) = path(service, "GetContainerEvents") else {
        return;
    };
    if ready(&mut client).await.is_err() {
        return;
    }
    let codec = ProstCodec::<Nothing, Nothing>::default();
    let Ok(answer) = client.server_streaming(Request::new(Nothing {}), path, codec).await else {
        return;
    };
    let mut stream = answer.into_inner();
    while let Ok(Some(_)) = stream.message().await {
        events.notify_one();
    }
}

fn failure(status: &Status) -> Failure {
    match status.code() {
        Code::Unimplemented => Failure::new("what listens there is no container runtime with CRI".to_owned()),
        code => Failure::new(format!("{code}: {}", error::one_line(status.message()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sandbox(id: &str, uid: &str, created_at: i64) -> Sandbox {
        let labels = [
            ("app", "web"),
            ("io.kubernetes.pod.name", "web-1"),
            ("io.kubernetes.pod.uid", uid),
        ];
        Sandbox {
            id: id.to_owned(),
            metadata: Some(SandboxMetadata {
                name: "web-1".to_owned(),
                uid: uid.to_owned(),
                namespace: "shop".to_owned(),
            }),
            state: READY,
            created_at,
            labels: labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
            annotations: BTreeMap::new(),
        }
    }

    fn container(id: &str, sandbox: &str, name: &str) -> Container {
        Container {
            id: id.to_owned(),
            sandbox: sandbox.to_owned(),
            metadata: Some(ContainerMetadata { name: name.to_owned() }),
        }
    }

    fn status(ip: &str, more: &[&str], network: i32) -> SandboxStatus {
        SandboxStatus {
            network: Some(Network {
                ip: ip.to_owned(),
                additional: more.iter().map(|&ip| Ip { ip: ip.to_owned() }).collect(),
            }),
            linux: Some(Linux {
                namespaces: Some(Namespaces {
                    options: Some(NamespaceOptions { network }),
                }),
            }),
        }
    }

    #[test]
    fn a_pod_is_its_latest_sandbox_and_the_containers_of_all() {
        let ids = ["aa".repeat(32), "bb".repeat(32)];
        let sandboxes = vec![
            sandbox("old", "u1", 5),
            sandbox("new", "u1", 9),
            sandbox("older", "u1", 1),
        ];
        let containers = vec![
            container(&ids[0], "old", "main"),
            container(&ids[1], "new", "main"),
            container("odd", "new", "odd"),
            container(&ids[0], "nowhere", "lost"),
        ];
        let addresses = [("new".to_owned(), status("10.0.0.1", &["fd00::1"], 0).into())].into();
        let told = pods(sandboxes, containers, &addresses);
        let [pod] = &told[..] else { panic!("{told:?}") };
        let mut containers: Vec<_> = pod.containers.iter().map(|one| (one.name.as_str(), one.id)).collect();
        containers.sort_by_key(|(name, id)| (*name, id.map(|id| id.to_string())));
        let expected = [
            ("main", ContainerId::new(&ids[0])),
            ("main", ContainerId::new(&ids[1])),
            ("odd", None),
        ];
        assert_eq!(containers, expected);
        assert_eq!((&*pod.uid, &*pod.namespace, &*pod.name), ("u1", "shop", "web-1"));
        assert_eq!(pod.labels, Some(vec![("app".to_owned(), "web".to_owned())]));
        assert_eq!(
            pod.ips.iter().map(IpAddr::to_string).collect::<Vec<_>>(),
            ["10.0.0.1", "fd00::1"]
        );
        assert_eq!((pod.started, pod.host_network), (Some(WallTime(9)), Some(false)));
        assert_eq!(pod.owner, Owner::Unknown);
    }

    #[test]
    fn of_the_nodes_network_no_address_is_a_pods() {
        let addresses = Addresses::from(status("192.0.2.2", &[], OF_NODE));
        assert_eq!((addresses.ips, addresses.host_network), (vec![], true));
        let addresses = Addresses::from(status("", &["nonsense"], 0));
        assert_eq!((addresses.ips, addresses.host_network), (vec![], false));
        assert!(Addresses::from(SandboxStatus::default()).ips.is_empty());
    }

    #[test]
    fn static_pods_have_their_hash() {
        let with = |source: &str| {
            let annotations = [
                ("kubernetes.io/config.hash", "4d3"),
                ("kubernetes.io/config.source", source),
            ];
            let mut sandbox = sandbox("s", "4d3", 1);
            sandbox.annotations = annotations
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into();
            pods(vec![sandbox], vec![], &HashMap::new()).remove(0).static_uid
        };
        assert_eq!(with("file").as_deref(), Some("4d3"));
        assert_eq!(with("api"), None);
    }

    #[test]
    fn a_sandbox_without_names_is_left_out() {
        let nameless = Sandbox {
            metadata: None,
            ..sandbox("s", "u", 1)
        };
        assert_eq!(pods(vec![nameless], vec![], &HashMap::new()), []);
    }
}
