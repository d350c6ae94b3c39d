//! Serves the metrics over HTTP. One request a connection, and little time for it, so that a client that is slow or hostile
//! costs its own connection and nothing else.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::exposition::{self, Exposition};

/// Where they are; the second path is Kmesh's.
const PATHS: [&str; 2] = ["/metrics", "/status/metric"];
/// From a connection made to its last byte sent. Prometheus waits as long by default.
const WHOLE: Duration = Duration::from_secs(10);
/// From a connection made to its request read.
const REQUEST: Duration = Duration::from_secs(5);
/// Bytes of a request.
const REQUEST_BYTES: usize = 16 << 10;
/// Connections at a time. A new one takes the place of the oldest.
const MOST: usize = 256;
/// How long a text is good for: values are refreshed less often than that.
const FRESH: Duration = Duration::from_secs(1);
/// Wait when the system has no descriptor or memory for a connection.
const EXHAUSTED: Duration = Duration::from_millis(100);

/// Why the address cannot be served on.
#[derive(Debug, Error)]
#[error("cannot serve metrics on {address}: {error}\n  try: {remedy}")]
pub struct BindError {
    address: SocketAddr,
    error: io::Error,
    remedy: String,
}

impl BindError {
    fn new(address: SocketAddr, error: io::Error) -> Self {
        let port = address.port();
        let remedy = match error.kind() {
            io::ErrorKind::AddrInUse => {
                format!("another port with --metrics, or see who has this one: ss -ltnp 'sport = :{port}'")
            }
            io::ErrorKind::AddrNotAvailable => {
                "an address of this machine, or 0.0.0.0 or [::] for all of them".to_owned()
            }
            io::ErrorKind::PermissionDenied => "a port from 1024 on, or CAP_NET_BIND_SERVICE".to_owned(),
            _ => "another address with --metrics".to_owned(),
        };
        Self { address, error, remedy }
    }
}

/// A port that is taken, and not served yet.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    /// Where it listens; with port 0, the system has chosen one.
    pub address: SocketAddr,
}

impl Server {
    /// Takes the port.
    pub fn bind(address: SocketAddr) -> Result<Self, BindError> {
        let bind = || {
            let listener = TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            let address = listener.local_addr()?;
            Ok(Self { listener, address })
        };
        bind().map_err(|error| BindError::new(address, error))
    }

    /// Serves for as long as the process runs, in a thread of its own.
    pub fn serve(self, exposition: Exposition) -> Result<()> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start serving metrics")?;
        thread::Builder::new()
            .name("metrics".to_owned())
            .spawn(move || run(&runtime, self.listener, exposition))
            .context("cannot start a thread")?;
        Ok(())
    }
}

fn run(runtime: &Runtime, listener: TcpListener, exposition: Exposition) {
    runtime.block_on(async {
        // It fails only outside of a runtime.
        if let Ok(listener) = tokio::net::TcpListener::from_std(listener) {
            accept(&listener, Arc::new(Texts::new(exposition))).await;
        }
    });
}

async fn accept(listener: &tokio::net::TcpListener, texts: Arc<Texts>) {
    let mut connections = Connections::default();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => connections.begin(stream, &texts),
            // The client has gone again.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(_) => {
                connections.drop_one();
                sleep(EXHAUSTED).await;
            }
        }
    }
}

/// The connections of the moment, the oldest first.
#[derive(Default)]
struct Connections(VecDeque<Connection>);

struct Connection {
    /// Its request has been read.
    is_asked: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Connections {
    fn begin(&mut self, stream: TcpStream, texts: &Arc<Texts>) {
        if self.0.len() >= MOST {
            self.0.retain(|connection| !connection.task.is_finished());
        }
        if self.0.len() >= MOST {
            self.drop_one();
        }
        let is_asked = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn(answer(stream, Arc::clone(texts), Arc::clone(&is_asked)));
        self.0.push_back(Connection { is_asked, task });
    }

    /// The oldest that has not asked anything yet, or else the oldest.
    fn drop_one(&mut self) {
        let silent = |connection: &Connection| !connection.is_asked.load(Ordering::Relaxed);
        let place = self.0.iter().position(silent).unwrap_or(0);
        if let Some(connection) = self.0.remove(place) {
            connection.task.abort();
        }
    }
}

async fn answer(stream: TcpStream, texts: Arc<Texts>, is_asked: Arc<AtomicBool>) {
    let service = service_fn(|request| {
        is_asked.store(true, Ordering::Relaxed);
        let response = respond(&request, &texts);
        async { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(REQUEST_BYTES)
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST)
        .serve_connection(TokioIo::new(stream), service);
    // Whatever goes wrong, it is the client's.
    _ = timeout(WHOLE, connection).await;
}

fn respond(request: &Request<Incoming>, texts: &Texts) -> Response<Full<Bytes>> {
    let plain = |status, text: &'static str| {
        let mut response = Response::new(Full::from(text));
        *response.status_mut() = status;
        response
    };
    if !PATHS.contains(&request.uri().path()) {
        return plain(StatusCode::NOT_FOUND, "metrics are at /metrics\n");
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "GET or HEAD\n");
        response
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    let mut response = Response::new(Full::new(texts.fresh()));
    let content = HeaderValue::from_static(exposition::CONTENT_TYPE);
    response.headers_mut().insert(CONTENT_TYPE, content);
    response
}

/// The text of the moment, shared by all that ask within a second: however many they are, it is made once.
struct Texts(Mutex<(Exposition, Option<(Instant, Bytes)>)>);

impl Texts {
    fn new(exposition: Exposition) -> Self {
        Self(Mutex::new((exposition, None)))
    }

    fn fresh(&self) -> Bytes {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (exposition, last) = &mut *state;
        match last {
            Some((made, text)) if made.elapsed() < FRESH => text.clone(),
            _ => {
                let text = Bytes::from(exposition.text());
                *last = Some((Instant::now(), text.clone()));
                text
            }
        }
    }
}
