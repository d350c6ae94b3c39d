//! The container runtime: this node's pods by CRI, the interface between kubelet and runtime.
//!
//! The messages are those of `runtime.v1`; `runtime.v1alpha2` has the same fields. They are read as they arrive, and
//! only the fields that naming needs.

mod messages;

use std::cmp::Reverse;
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
use super::reporter::{List, Reporter};
use crate::names::objects::object_list::LeftOut;
use crate::names::objects::static_uid_by_kubelet;
use crate::names::update::{ContainerObject, Object, PodObject};
use crate::record::WallTime;

/// The longest time to connect, until an answer begins, and between two parts of an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// The bytes that the runtime may send ahead.
const WINDOW: u32 = 1 << 20;
/// The largest number of sandboxes, and of containers, of a node.
const MAX_ELEMENTS: usize = 20_000;
/// Versions of the API, the newest first.
const SERVICES: [&str; 2] = ["runtime.v1.RuntimeService", "runtime.v1alpha2.RuntimeService"];
/// The value `SANDBOX_READY` of a sandbox's state.
const READY: i64 = 0;
const NOT_FOUND: &str = "5";
const UNIMPLEMENTED: &str = "12";

pub struct CriSource {
    sockets: Vec<PathBuf>,
    runtime: Option<RuntimeConnection>,
    /// By the id of each sandbox that is ready.
    addresses: HashMap<String, Addresses>,
}

impl CriSource {
    /// Returns a source for the first runtime that listens on one of these sockets.
    pub fn new(sockets: &[PathBuf]) -> Self {
        Self {
            sockets: sockets.to_owned(),
            runtime: None,
            addresses: HashMap::new(),
        }
    }

    async fn pods(&mut self, reporter: &Reporter) -> Result<Vec<PodObject>, SourceError> {
        let mut runtime = match self.runtime.take() {
            Some(runtime) => runtime,
            None => RuntimeConnection::connect(&self.sockets).await?,
        };
        // After an error, another runtime may listen.
        let known = std::mem::take(&mut self.addresses);
        let mut sandboxes = Vec::new();
        let mut found = |message: &[u8]| sandboxes.push(Sandbox::parse(message));
        reporter.left_out(runtime.list("ListPodSandbox", &mut found).await?);
        let mut containers = Vec::new();
        let mut found = |message: &[u8]| containers.push(container(message));
        reporter.left_out(runtime.list("ListContainers", &mut found).await?);
        let mut addresses = HashMap::new();
        for sandbox in sandboxes.iter().filter(|sandbox| sandbox.state == READY) {
            let known = known
                .get(&sandbox.id)
                .filter(|known| known.host_network || !known.ips.is_empty());
            let found = match known {
                Some(known) => Some(known.clone()),
                None => runtime.addresses(&sandbox.id).await?,
            };
            addresses.extend(found.map(|found| (sandbox.id.clone(), found)));
        }
        self.addresses = addresses;
        self.runtime = Some(runtime);
        Ok(pods(sandboxes, containers, &self.addresses))
    }
}

impl PollSource for CriSource {
    async fn list(&mut self, list: &mut List<'_>) -> Result<Listed, SourceError> {
        let pods = self.pods(list.reporter).await?;
        pods.into_iter().map(Object::Pod).for_each(|pod| list.upsert(pod));
        Ok(Listed::Complete)
    }

    /// Waits until something happens to a container.
    async fn event(&mut self) {
        match &self.runtime {
            Some(runtime) => runtime.events.notified().await,
            None => pending().await,
        }
    }
}

/// Returns the pods. A pod may have had several sandboxes, one after the other: its addresses are those of the latest
/// one, its containers those of all.
fn pods(
    mut sandboxes: Vec<Sandbox>,
    containers: Vec<(String, ContainerObject)>,
    addresses: &HashMap<String, Addresses>,
) -> Vec<PodObject> {
    let mut of_sandbox: HashMap<String, Vec<ContainerObject>> = HashMap::new();
    for (sandbox, container) in containers {
        of_sandbox.entry(sandbox).or_default().push(container);
    }
    sandboxes.sort_by_key(|sandbox| Reverse(sandbox.created_at));
    let mut pods: HashMap<String, PodObject> = HashMap::new();
    for sandbox in sandboxes.into_iter().filter(|sandbox| !sandbox.uid.is_empty()) {
        let containers = of_sandbox.remove(&sandbox.id).unwrap_or_default();
        let pod = pods.entry(sandbox.uid.clone()).or_insert_with(|| {
            let known = addresses.get(&sandbox.id);
            PodObject {
                static_uid: static_uid_by_kubelet(sandbox.config_source, sandbox.config_hash),
                uid: sandbox.uid,
                namespace: sandbox.namespace,
                name: sandbox.name,
                labels: sandbox.labels,
                host_network: known.map(|known| known.host_network),
                ips: known.map(|known| known.ips.clone()).unwrap_or_default(),
                started: Some(WallTime(sandbox.created_at)),
                ..PodObject::default()
            }
        });
        pod.containers.extend(containers);
    }
    pods.into_values().collect()
}

/// Why a call has no answer.
enum CallError {
    /// The status of gRPC, and its message.
    Status(String, String),
    Failed(SourceError),
}

impl<E: Into<SourceError>> From<E> for CallError {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

impl CallError {
    fn has_status(&self, status: &str) -> bool {
        matches!(self, Self::Status(code, _) if code == status)
    }

    fn into_source_error(self) -> SourceError {
        match self {
            Self::Failed(error) => error,
            Self::Status(code, _) if code == UNIMPLEMENTED => not_cri(),
            Self::Status(code, message) => {
                let (code, message) = (error::one_line(&code), error::one_line(&message));
                SourceError::new(format!("gRPC status {code}: {message}"))
            }
        }
    }
}

fn not_cri() -> SourceError {
    SourceError::new("this socket is not one of a container runtime with CRI")
}

struct RuntimeConnection {
    caller: Caller,
    events: Arc<Notify>,
    subscription: JoinHandle<()>,
    connection: JoinHandle<()>,
}

impl Drop for RuntimeConnection {
    fn drop(&mut self) {
        self.subscription.abort();
        self.connection.abort();
    }
}

impl RuntimeConnection {
    async fn connect(sockets: &[PathBuf]) -> Result<Self, SourceError> {
        let mut failed = SourceError::new("this node has no socket of a container runtime");
        for socket in sockets {
            match Self::connect_to(socket).await.map_err(CallError::into_source_error) {
                Ok(runtime) => return Ok(runtime),
                // An error of a socket that exists is more useful than that of one that does not.
                Err(error) if socket.exists() || sockets.len() == 1 => failed = error.at(&socket.display().to_string()),
                Err(_) => {}
            }
        }
        Err(failed)
    }

    async fn connect_to(socket: &Path) -> Result<Self, CallError> {
        let connecting = timeout(ANSWER_TIMEOUT, async {
            let stream = TokioIo::new(UnixStream::connect(socket).await?);
            let mut builder = http2::Builder::new(TokioExecutor::new());
            builder
                .initial_stream_window_size(WINDOW)
                .initial_connection_window_size(WINDOW);
            Ok::<_, SourceError>(builder.handshake(stream).await?)
        });
        let (sender, connection) = connecting.await.map_err(|_| no_answer())??;
        // The calls on the connection get its errors.
        let connection = tokio::spawn(async move { _ = connection.await });
        let mut caller = Caller {
            sender,
            service: SERVICES[0],
        };
        let mut version = caller.call("Version", &[]).await;
        if version.as_ref().is_err_and(|error| error.has_status(UNIMPLEMENTED)) {
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

    async fn list(&mut self, method: &str, found: &mut dyn FnMut(&[u8])) -> Result<LeftOut, SourceError> {
        let mut count = 0;
        let mut found = |element: &[u8]| {
            count += 1;
            if count <= MAX_ELEMENTS {
                found(element);
            }
        };
        let elements = self.caller.elements(method, &[], &mut found).await;
        let elements = elements.map_err(CallError::into_source_error)?;
        if !elements.is_complete() {
            return Err(not_cri());
        }
        Ok(LeftOut {
            count: elements.too_large + count.saturating_sub(MAX_ELEMENTS) as u64,
            first: format!("{method} has more than 4 MiB in one element, or more than {MAX_ELEMENTS} elements"),
        })
    }

    /// Returns the addresses of a sandbox, if it still exists.
    async fn addresses(&mut self, id: &str) -> Result<Option<Addresses>, SourceError> {
        let mut request = Vec::new();
        protobuf::push_text(&mut request, 1, id);
        let mut addresses = Addresses::default();
        let mut parse = |status: &[u8]| addresses = Addresses::parse(status);
        match self.caller.elements("PodSandboxStatus", &request, &mut parse).await {
            Ok(_) => Ok(Some(addresses)),
            Err(error) if error.has_status(NOT_FOUND) => Ok(None),
            Err(error) => Err(error.into_source_error()),
        }
    }
}

#[derive(Clone)]
struct Caller {
    sender: SendRequest<Full<Bytes>>,
    service: &'static str,
}

struct GrpcAnswer {
    body: Incoming,
    trailers: Option<HeaderMap>,
}

impl Caller {
    /// Calls a method, and passes on each element of field 1 of its answer.
    async fn elements(
        &mut self,
        method: &str,
        message: &[u8],
        found: &mut dyn FnMut(&[u8]),
    ) -> Result<Elements, CallError> {
        let mut reply = self.call(method, message).await?;
        let mut elements = Elements::default();
        while let Some(part) = reply.part().await? {
            elements.feed(&part, found)?;
        }
        reply.end().await?;
        Ok(elements)
    }

    async fn call(&mut self, method: &str, message: &[u8]) -> Result<GrpcAnswer, CallError> {
        let sent = timeout(ANSWER_TIMEOUT, self.send(method, message)).await;
        sent.map_err(|_| no_answer())?
    }

    /// Sends a request and waits until the answer begins, however long that takes.
    async fn send(&mut self, method: &str, message: &[u8]) -> Result<GrpcAnswer, CallError> {
        let request = Request::post(format!("http://localhost/{}/{method}", self.service))
            .header(CONTENT_TYPE, "application/grpc")
            .header(TE, "trailers")
            .body(Full::new(Bytes::from(protobuf::request(message))))
            .map_err(|error| error::root_cause(&error))?;
        self.sender.ready().await?;
        let answer = self.sender.send_request(request).await?;
        if !answer.status().is_success() {
            return Err(not_cri().because(&error::status_name(answer.status())).into());
        }
        // An answer without a body has its status in the headers.
        check_status(answer.headers())?;
        Ok(GrpcAnswer {
            body: answer.into_body(),
            trailers: None,
        })
    }
}

impl GrpcAnswer {
    async fn part(&mut self) -> Result<Option<Bytes>, SourceError> {
        while let Some(frame) = timeout(ANSWER_TIMEOUT, self.body.frame())
            .await
            .map_err(|_| no_answer())?
        {
            match frame?.into_data() {
                Ok(bytes) => return Ok(Some(bytes)),
                Err(frame) => self.trailers = frame.into_trailers().ok(),
            }
        }
        Ok(None)
    }

    /// Reads up to the end, and checks the status of the call.
    async fn end(mut self) -> Result<(), CallError> {
        while self.part().await?.is_some() {}
        self.trailers.as_ref().map_or(Ok(()), check_status)
    }
}

fn check_status(headers: &HeaderMap) -> Result<(), CallError> {
    let text = |name| {
        let value = headers.get(name)?;
        Some(String::from_utf8_lossy(value.as_bytes()).into_owned())
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
