//! Serves the metrics over HTTP: one request per connection, within ten seconds.
//!
//! The number of connections and the kernel memory of each are bounded, and all connections together hold at most
//! `MAX_TEXTS` texts. A slow or hostile scraper therefore delays only its own connection.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::{poll_fn, ready};
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener};
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
use rustix::net::sockopt::{set_socket_linger, set_socket_recv_buffer_size, set_socket_send_buffer_size};
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::exposition::{self, Exposition};
use crate::own_connections;

/// The paths of the metrics. The second one is Kmesh's.
const PATHS: [&str; 2] = ["/metrics", "/status/metric"];
/// The maximum time from accepting a connection to sending the last byte of the response. It equals the default scrape
/// timeout of Prometheus.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);
/// The maximum time from accepting a connection to receiving its request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// The maximum size of a request, and of the receive buffer in the kernel.
const MAX_REQUEST_BYTES: usize = 16 << 10;
/// The maximum number of bytes that the kernel buffers of a response (it doubles the figure for its own use). Enough
/// for 25 MB/s at a round-trip time of 10 ms.
const SEND_BUFFER_BYTES: usize = 256 << 10;
/// The maximum number of connections. A new connection replaces another one, see [`Connections::victim`].
const MAX_CONNECTIONS: usize = 64;
/// The maximum number of texts in memory: the newest, and an older one that a slow scraper still reads.
const MAX_TEXTS: usize = 2;
/// The age at which a text is rendered anew. Values are refreshed less often than that.
const TEXT_LIFETIME: Duration = Duration::from_secs(1);
/// Time to wait when the system has no descriptor or memory for a connection.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// The error of an address that the server cannot listen on.
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
                format!("another port with --metrics; ss -ltnp 'sport = :{port}' shows who uses this one")
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

/// A listening socket that does not accept connections yet.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    /// The address of the socket. If the requested port was 0, the system has chosen a port.
    pub address: SocketAddr,
}

impl Server {
    /// Binds the listening socket.
    pub fn bind(address: SocketAddr) -> Result<Self, BindError> {
        let bind = || {
            let listener = TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            // Accepted sockets inherit these options. Without them the kernel only buffers more, so errors are ignored.
            _ = set_socket_recv_buffer_size(&listener, MAX_REQUEST_BYTES);
            _ = set_socket_send_buffer_size(&listener, SEND_BUFFER_BYTES);
            // Also after this end has closed, the kernel drops a response that the client does not read in time.
            #[cfg(target_os = "linux")]
            {
                _ = rustix::net::sockopt::set_tcp_user_timeout(&listener, RESPONSE_TIMEOUT.as_millis() as u32);
            }
            let address = listener.local_addr()?;
            own_connections::listen(address);
            Ok(Self { listener, address })
        };
        bind().map_err(|error| BindError::new(address, error))
    }

    /// Serves in a separate thread until the process ends.
    pub fn serve(self, exposition: Exposition) -> Result<()> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start serving metrics")?;
        thread::Builder::new()
            .name("metrics".to_owned())
            .spawn(move || run(&runtime, self.listener, exposition))
            .context("cannot start the metrics thread")?;
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
            Ok((stream, peer)) => {
                if let Ok(address) = stream.local_addr() {
                    own_connections::add(peer, address);
                }
                connections.start(stream, peer.ip(), &texts);
            }
            // The client has closed the connection already.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(_) => {
                connections.remove_finished();
                connections.drop_one();
                sleep(EXHAUSTED_PAUSE).await;
            }
        }
    }
}

/// The open connections, the oldest first.
#[derive(Default)]
struct Connections(VecDeque<Connection>);

struct Connection {
    /// The network of the client.
    client: IpAddr,
    /// Whether the server has read its request.
    has_asked: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Connections {
    fn start(&mut self, stream: TcpStream, peer: IpAddr, texts: &Arc<Texts>) {
        if self.0.len() >= MAX_CONNECTIONS {
            self.remove_finished();
        }
        if self.0.len() >= MAX_CONNECTIONS {
            self.drop_one();
        }
        let has_asked = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn(answer(stream, Arc::clone(texts), Arc::clone(&has_asked)));
        self.0.push_back(Connection {
            client: network(peer),
            has_asked,
            task,
        });
    }

    fn remove_finished(&mut self) {
        self.0.retain(|connection| !connection.task.is_finished());
    }

    fn drop_one(&mut self) {
        let connections = (self.0.iter())
            .map(|connection| (connection.client, connection.has_asked.load(Ordering::Relaxed)))
            .collect::<Vec<_>>();
        if let Some(connection) = Self::victim(&connections).and_then(|index| self.0.remove(index)) {
            connection.task.abort();
        }
    }

    /// Returns the index of the connection to close: of the client with the most connections, the oldest without a
    /// request, or else the oldest. A client that opens many connections thus displaces its own.
    fn victim(connections: &[(IpAddr, bool)]) -> Option<usize> {
        let count = |client: IpAddr| connections.iter().filter(|(other, _)| *other == client).count();
        let indices = 0..connections.len();
        indices.min_by_key(|&index| {
            let (client, has_asked) = connections[index];
            (Reverse(count(client)), has_asked, index)
        })
    }
}

/// The network that one client controls: an IPv4 address, or the first 64 bits of an IPv6 address.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address => address,
    }
}

async fn answer(stream: TcpStream, texts: Arc<Texts>, has_asked: Arc<AtomicBool>) {
    let service = service_fn(|request| {
        has_asked.store(true, Ordering::Relaxed);
        ready(Ok::<_, Infallible>(respond(&request, &texts)))
    });
    // A connection that is cut off frees its unsent bytes at once: the kernel must not go on sending them.
    _ = set_socket_linger(&stream, Some(Duration::ZERO));
    let mut connection = http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(MAX_REQUEST_BYTES)
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    let served = timeout(
        RESPONSE_TIMEOUT,
        poll_fn(|context| connection.poll_without_shutdown(context)),
    )
    .await;
    // An error before the timeout is the client's, and hyper has answered it.
    if served.is_ok() {
        _ = set_socket_linger(connection.into_parts().io.inner(), None);
    }
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
    let mut response = Response::new(Full::new(texts.fresh(Instant::now())));
    let content = HeaderValue::from_static(exposition::CONTENT_TYPE);
    response.headers_mut().insert(CONTENT_TYPE, content);
    response
}

/// The rendered texts. All requests within [`TEXT_LIFETIME`] share one text.
struct Texts(Mutex<Rendered>);

struct Rendered {
    exposition: Exposition,
    /// At most [`MAX_TEXTS`], the oldest first.
    texts: VecDeque<Text>,
}

struct Text {
    rendered_at: Instant,
    bytes: Bytes,
}

impl Texts {
    fn new(exposition: Exposition) -> Self {
        Self(Mutex::new(Rendered {
            exposition,
            texts: VecDeque::new(),
        }))
    }

    fn fresh(&self, now: Instant) -> Bytes {
        let mut rendered = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Rendered { exposition, texts } = &mut *rendered;
        fresh(texts, now, || exposition.text())
    }
}

/// Returns the newest text. Renders a new one if the newest is too old and scrapers hold fewer than [`MAX_TEXTS`].
/// Otherwise the text grows older until [`RESPONSE_TIMEOUT`] ends the connection of a slow scraper.
fn fresh(texts: &mut VecDeque<Text>, now: Instant, render: impl FnOnce() -> String) -> Bytes {
    let is_old = |text: &Text| now.saturating_duration_since(text.rendered_at) >= TEXT_LIFETIME;
    if texts.back().is_none_or(is_old) {
        texts.retain(|text| !text.bytes.is_unique());
    }
    match texts.back() {
        Some(newest) if !is_old(newest) || texts.len() >= MAX_TEXTS => newest.bytes.clone(),
        _ => {
            let bytes = Bytes::from(render());
            texts.push_back(Text {
                rendered_at: now,
                bytes: bytes.clone(),
            });
            bytes
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_scrapers_hold_at_most_two_texts() {
        let (mut texts, start, mut renders) = (VecDeque::new(), Instant::now(), 0);
        let mut scrape = |texts: &mut VecDeque<Text>, millis| {
            let text = fresh(texts, start + Duration::from_millis(millis), || {
                renders += 1;
                format!("{renders:0>100}")
            });
            assert!(texts.len() <= MAX_TEXTS);
            String::from_utf8_lossy(&text).trim_start_matches('0').to_owned()
        };
        // (when, the text that a scraper gets)
        let quick = [(0, "1"), (999, "1"), (1000, "2"), (5000, "3")];
        for (millis, expected) in quick {
            assert_eq!(scrape(&mut texts, millis), expected, "{millis}");
            assert_eq!(texts.len(), 1, "a text without a reader is dropped");
        }
        let slow = |texts: &VecDeque<Text>| texts.back().map(|text| text.bytes.clone());
        let first = slow(&texts);
        assert_eq!(scrape(&mut texts, 6000), "4");
        let second = slow(&texts);
        for millis in [7000, 8000, 9000] {
            assert_eq!(scrape(&mut texts, millis), "4", "no third text while two are held");
        }
        drop(first);
        assert_eq!(scrape(&mut texts, 10_000), "5");
        drop(second);
        assert_eq!(scrape(&mut texts, 11_000), "6");
        assert_eq!(texts.len(), 1);
    }

    #[test]
    fn client_with_most_connections_makes_room() {
        let [a, b, c] = ["10.0.0.1", "10.0.0.2", "10.0.0.3"].map(|address| address.parse().unwrap());
        type Case<'a> = (&'a [(IpAddr, bool)], Option<usize>);
        let cases: [Case<'_>; 6] = [
            (&[], None),
            (&[(a, true)], Some(0)),
            (&[(a, true), (a, true)], Some(0)),
            (&[(a, true), (a, false), (a, false)], Some(1)),
            (&[(a, false), (b, true), (b, true)], Some(1)),
            (&[(a, false), (b, true), (c, false), (b, false)], Some(3)),
        ];
        for (connections, expected) in cases {
            assert_eq!(Connections::victim(connections), expected, "{connections:?}");
        }
    }

    #[test]
    fn addresses_of_one_network_are_one_client() {
        let cases = [
            ("10.0.0.1", "10.0.0.1"),
            ("::ffff:10.0.0.1", "10.0.0.1"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ];
        for (address, expected) in cases {
            assert_eq!(network(address.parse().unwrap()).to_string(), expected);
        }
    }
}
