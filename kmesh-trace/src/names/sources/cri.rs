//! The container runtime: this node's pods by CRI, the interface between kubelet and runtime.
//!
//! The messages are those of `runtime.v1`; `runtime.v1alpha2` has the same fields. They are read as they arrive, and only the
//! fields that naming needs.

mod messages;

use std::collections::HashMap;
use std::future::pending;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use http::header::{CONTENT_TYPE, HeaderMap, TE};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::UnixStream;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use self::messages::{Addresses, Sandbox, container};
use super::error::{self, SourceError};
use super::poll::{Listed, PollSource};
use super::protobuf::{self, Elements};
use super::reporter::List;
use crate::names::objects::object_list::LeftOut;
use crate::names::objects::static_uid_by_kubelet;
use crate::names::update::{ContainerObject, Object, Owner, PodObject};
use crate::record::WallTime;

/// The longest time to connect, until an answer begins, and between two parts of an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// The bytes that the runtime may send ahead.
const WINDOW: u32 = 1 << 20;
/// The most sandboxes and containers of a node.
const MAX_ELEMENTS: usize = 20_000;
/// Versions of the API, the newest first.
const SERVICES: [&str; 2] = ["runtime.v1.RuntimeService", "runtime.v1alpha2.RuntimeService"];
/// `SANDBOX_READY`.
const READY: i64 = 0;
/// gRPC statuses.
const NOT_FOUND: &str = "5";
const UNIMPLEMENTED: &str = "12";

/// A container runtime that can be asked.
pub struct CriSource {
    sockets: Vec<PathBuf>,
    runtime: Option<Runtime>,
    /// By the id of each sandbox that is ready.
    addresses: HashMap<String, Addresses>,
}

impl CriSource {
    /// Asks the first runtime that listens on one of these sockets.
    pub fn new(sockets: &[PathBuf]) -> Self {
        Self {
            sockets: sockets.to_owned(),
            runtime: None,
            addresses: HashMap::new(),
        }
    }

    async fn pods(&mut self, left_out: &mut LeftOut) -> Result<Vec<PodObject>, SourceError> {
        let mut runtime = match self.runtime.take() {
            Some(runtime) => runtime,
            None => Runtime::connect(&self.sockets).await?,
        };
        let mut sandboxes = Vec::new();
        let mut list = |message: &[u8]| sandboxes.push(Sandbox::parse(message));
        runtime.list("ListPodSandbox", left_out, &mut list).await?;
        let mut containers = Vec::new();
        let mut list = |message: &[u8]| containers.push(container(message));
        runtime.list("ListContainers", left_out, &mut list).await?;
        let mut addresses = HashMap::new();
        for sandbox in sandboxes.iter().filter(|sandbox| sandbox.state == READY) {
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
        Ok(pods(sandboxes, containers, &self.addresses))
    }
}

impl PollSource for CriSource {
    async fn list(&mut self, list: &mut List<'_>) -> Result<Listed, SourceError> {
        let mut left_out = LeftOut::default();
        match self.pods(&mut left_out).await {
            Ok(pods) => {
                pods.into_iter().map(Object::Pod).for_each(|pod| list.upsert(pod));
                list.left_out(left_out);
                Ok(Listed::Complete)
            }
            Err(error) => {
                // The runtime may have been restarted.
                self.runtime = None;
                self.addresses.clear();
                Err(error)
            }
        }
    }

    /// Waits until something happens to a container.
    async fn event(&mut self) {
        match &self.runtime {
            Some(runtime) => runtime.events.notified().await,
            None => pending().await,
        }
    }
}

/// A pod may have had several sandboxes, one after the other: its addresses are those of the latest one, its containers those of
/// all.
fn pods(
    sandboxes: Vec<Sandbox>,
    containers: Vec<(String, ContainerObject)>,
    addresses: &HashMap<String, Addresses>,
) -> Vec<PodObject> {
    let mut of_sandbox: HashMap<String, Vec<ContainerObject>> = HashMap::new();
    for (sandbox, container) in containers {
        of_sandbox.entry(sandbox).or_default().push(container);
    }
    let mut pods: HashMap<String, (i64, PodObject)> = HashMap::new();
    for sandbox in sandboxes.into_iter().filter(|sandbox| !sandbox.uid.is_empty()) {
        let mut containers = of_sandbox.remove(&sandbox.id).unwrap_or_default();
        let known = addresses.get(&sandbox.id).cloned();
        let created_at = sandbox.created_at;
        let mut pod = PodObject {
            static_uid: static_uid_by_kubelet(sandbox.config_source.as_deref(), sandbox.config_hash.as_deref()),
            uid: sandbox.uid,
            namespace: sandbox.namespace,
            name: sandbox.name,
            labels: sandbox.labels,
            node: None,
            host_network: known.as_ref().map(|known| known.host_network),
            service_account: None,
            owner: Owner::Unknown,
            ips: known.map(|known| known.ips).unwrap_or_default(),
            started: Some(WallTime(created_at)),
            terminal: false,
            containers: Vec::new(),
        };
        match pods.get_mut(&pod.uid) {
            Some((latest, other)) if *latest >= created_at => other.containers.append(&mut containers),
            other => {
                if let Some((_, other)) = other {
                    containers.append(&mut other.containers);
                }
                pod.containers = containers;
                pods.insert(pod.uid.clone(), (created_at, pod));
            }
        }
    }
    pods.into_values().map(|(_, pod)| pod).collect()
}

/// Why a call has no answer.
enum CallError {
    /// The status of gRPC.
    Status(String, String),
    Failed(SourceError),
}

impl From<SourceError> for CallError {
    fn from(error: SourceError) -> Self {
        Self::Failed(error)
    }
}

impl From<CallError> for SourceError {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Failed(error) => error,
            CallError::Status(code, _) if code == UNIMPLEMENTED => not_cri(),
            CallError::Status(code, message) => Self::new(format!(
                "gRPC status {}: {}",
                error::one_line(&code),
                error::one_line(&message)
            )),
        }
    }
}

fn not_cri() -> SourceError {
    SourceError::new("this socket is not one of a container runtime with CRI".to_owned())
}

/// A connection to a runtime.
struct Runtime {
    caller: Caller,
    events: Arc<Notify>,
    subscription: JoinHandle<()>,
    connection: JoinHandle<()>,
}

impl Drop for Runtime {
    fn drop(&mut self) {
        self.subscription.abort();
        self.connection.abort();
    }
}

impl Runtime {
    async fn connect(sockets: &[PathBuf]) -> Result<Self, SourceError> {
        let mut failed = SourceError::new("this node has no socket of a container runtime".to_owned());
        for socket in sockets {
            match Self::connect_to(socket).await {
                Ok(runtime) => return Ok(runtime),
                // A socket where something is wrong says more than one that is not there.
                Err(error) if socket.exists() || sockets.len() == 1 => failed = error.at(&socket.display()),
                Err(_) => {}
            }
        }
        Err(failed)
    }

    async fn connect_to(socket: &Path) -> Result<Self, SourceError> {
        let connecting = timeout(ANSWER_TIMEOUT, async {
            let stream = UnixStream::connect(socket).await.map_err(|error| error::of(&error))?;
            http2::Builder::new(TokioExecutor::new())
                .initial_stream_window_size(WINDOW)
                .initial_connection_window_size(WINDOW)
                .handshake(TokioIo::new(stream))
                .await
                .map_err(|error| error::of(&error))
        });
        let (sender, connection) = connecting.await.unwrap_or_else(|_| Err(no_answer()))?;
        // What goes wrong on the connection is seen by the calls on it.
        let connection = tokio::spawn(async move { _ = connection.await });
        let mut caller = Caller {
            sender,
            service: SERVICES[0],
        };
        let mut version = caller.call("Version", &[]).await;
        if matches!(&version, Err(CallError::Status(code, _)) if code == UNIMPLEMENTED) {
            caller.service = SERVICES[1];
            version = caller.call("Version", &[]).await;
        }
        version?.end().await?;
        let events = Arc::new(Notify::new());
        Ok(Self {
            subscription: tokio::spawn(subscribe(caller.clone(), Arc::clone(&events))),
            caller,
            events,
            connection,
        })
    }

    /// Lists sandboxes or containers.
    async fn list(
        &mut self,
        method: &str,
        left_out: &mut LeftOut,
        found: &mut dyn FnMut(&[u8]),
    ) -> Result<(), SourceError> {
        let mut answer = self.caller.call(method, &[]).await?;
        let mut elements = Elements::default();
        let mut count = 0;
        while let Some(part) = answer.part().await? {
            elements.feed(&part, &mut |element| {
                count += 1;
                if count <= MAX_ELEMENTS {
                    found(element);
                }
            })?;
        }
        answer.end().await?;
        if !elements.is_complete() {
            return Err(not_cri());
        }
        left_out.merge(LeftOut {
            count: elements.too_large + count.saturating_sub(MAX_ELEMENTS) as u64,
            first: format!("{method} has more than 4 MiB in one element, or more than {MAX_ELEMENTS} elements"),
        });
        Ok(())
    }

    async fn addresses(&mut self, id: &str) -> Result<Option<Addresses>, SourceError> {
        let mut request = Vec::new();
        protobuf::push_text(&mut request, 1, id);
        let answer = async {
            let mut answer = self.caller.call("PodSandboxStatus", &request).await?;
            let mut elements = Elements::default();
            let mut addresses = Addresses::default();
            while let Some(part) = answer.part().await? {
                elements.feed(&part, &mut |status| addresses = Addresses::parse(status))?;
            }
            answer.end().await?;
            Ok(addresses)
        };
        match answer.await {
            Ok(addresses) => Ok(Some(addresses)),
            // The sandbox went away between the two calls.
            Err(CallError::Status(code, _)) if code == NOT_FOUND => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// Calls methods of the runtime.
#[derive(Clone)]
struct Caller {
    sender: SendRequest<Full<Bytes>>,
    service: &'static str,
}

/// An answer that is being read.
struct Reply {
    body: Incoming,
    trailers: Option<HeaderMap>,
}

impl Caller {
    async fn call(&mut self, method: &str, message: &[u8]) -> Result<Reply, CallError> {
        let sent = timeout(ANSWER_TIMEOUT, self.send(method, message)).await;
        sent.unwrap_or_else(|_| Err(no_answer().into()))
    }

    /// Sends a request and waits until the answer begins, however long that takes.
    async fn send(&mut self, method: &str, message: &[u8]) -> Result<Reply, CallError> {
        let request = Request::post(format!("http://localhost/{}/{method}", self.service))
            .header(CONTENT_TYPE, "application/grpc")
            .header(TE, "trailers")
            .body(Full::new(Bytes::from(protobuf::request(message))))
            .map_err(|error| error::of(&error))?;
        self.sender.ready().await.map_err(|error| error::of(&error))?;
        let answer = self.sender.send_request(request).await;
        let answer = answer.map_err(|error| error::of(&error))?;
        if !answer.status().is_success() {
            return Err(not_cri().because(&error::status_name(answer.status())).into());
        }
        // An answer without a body has its status in the headers.
        check_status(answer.headers())?;
        Ok(Reply {
            body: answer.into_body(),
            trailers: None,
        })
    }
}

impl Reply {
    async fn part(&mut self) -> Result<Option<Bytes>, SourceError> {
        loop {
            let frame = timeout(ANSWER_TIMEOUT, self.body.frame())
                .await
                .map_err(|_| no_answer())?;
            let Some(frame) = frame.transpose().map_err(|error| error::of(&error))? else {
                return Ok(None);
            };
            match frame.into_data() {
                Ok(bytes) => return Ok(Some(bytes)),
                Err(frame) => self.trailers = frame.into_trailers().ok(),
            }
        }
    }

    /// Reads up to the end, and checks the status of the call.
    async fn end(mut self) -> Result<(), CallError> {
        while self.part().await?.is_some() {}
        self.trailers.as_ref().map_or(Ok(()), check_status)
    }
}

fn check_status(headers: &HeaderMap) -> Result<(), CallError> {
    let text = |name| {
        headers
            .get(name)
            .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
    };
    match text("grpc-status") {
        Some(code) if code != "0" => Err(CallError::Status(code, text("grpc-message").unwrap_or_default())),
        _ => Ok(()),
    }
}

fn no_answer() -> SourceError {
    SourceError::new(format!("no answer for {} s", ANSWER_TIMEOUT.as_secs()))
}

/// Notifies of each event of a container, where the runtime streams events.
async fn subscribe(mut caller: Caller, events: Arc<Notify>) {
    // The answer begins with the first event.
    let Ok(mut reply) = caller.send("GetContainerEvents", &[]).await else {
        return;
    };
    while let Some(Ok(_)) = reply.body.frame().await {
        events.notify_one();
    }
}

#[cfg(test)]
mod tests;
