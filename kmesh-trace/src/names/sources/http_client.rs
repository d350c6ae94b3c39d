//! Requests to kubelets and API servers: HTTP/1.1, with or without TLS, one connection at a time.
//!
//! An answer is read as it arrives. It has no limit of length, but each part must come in time.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::header::{
    ACCEPT, AUTHORIZATION, CONNECTION, CONTENT_TYPE, HOST, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE, USER_AGENT,
};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::upgrade::Upgraded;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tower_service::Service as _;

use super::credentials::{Credentials, Grant};
use super::error::{self, SourceError};
use super::proxy::Proxy;
use super::tls::TlsSettings;
use crate::own_connections;

/// The longest time to connect, TLS and a proxy included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest time until an answer begins, and between two parts of an answer.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// The largest buffer of a connection, in bytes.
const MAX_BUFFER: usize = 64 << 10;
/// The longest error text that is read, in bytes.
const MAX_ERROR_TEXT: usize = 64 << 10;

pub struct HttpClient {
    /// The server. Its path is put before each path.
    pub server: Uri,
    pub tls: TlsSettings,
    pub proxy: Option<Proxy>,
    pub credentials: Credentials,
    /// Headers of every request.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
    driver: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

pub struct Answer {
    body: Incoming,
}

impl Answer {
    /// Returns the next part of the answer; `None` at its end.
    pub async fn part(&mut self, within: Duration) -> Result<Option<Bytes>, SourceError> {
        let stopped = |_| SourceError::new(format!("the answer stopped in the middle for {} s", within.as_secs()));
        while let Some(frame) = timeout(within, self.body.frame()).await.map_err(stopped)? {
            let frame = frame.map_err(|error| SourceError::from(error).at("the answer broke off"))?;
            // Trailers are dropped.
            if let Ok(bytes) = frame.into_data() {
                return Ok(Some(bytes));
            }
        }
        Ok(None)
    }

    /// Returns the whole answer, which must not have more than `max` bytes.
    pub async fn whole(mut self, max: usize) -> Result<Vec<u8>, SourceError> {
        let mut whole = Vec::new();
        while let Some(part) = self.part(ANSWER_TIMEOUT).await? {
            if whole.len() + part.len() > max {
                return Err(SourceError::new(format!("the answer has more than {} MiB", max >> 20)));
            }
            whole.extend_from_slice(&part);
        }
        Ok(whole)
    }

    async fn error_text(&mut self) -> String {
        let mut text = Vec::new();
        while text.len() < MAX_ERROR_TEXT
            && let Ok(Some(part)) = self.part(ANSWER_TIMEOUT).await
        {
            text.extend_from_slice(&part[..part.len().min(MAX_ERROR_TEXT - text.len())]);
        }
        String::from_utf8_lossy(&text).into_owned()
    }
}

/// A request: its method, its path below the server's own, and its body.
pub struct Call<'a> {
    pub method: Method,
    pub path: &'a str,
    /// The body: JSON, or empty.
    pub body: Bytes,
    /// Headers besides those of every request.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

impl<'a> Call<'a> {
    pub fn new(method: Method, path: &'a str) -> Self {
        Self {
            method,
            path,
            body: Bytes::new(),
            headers: Vec::new(),
        }
    }
}

impl HttpClient {
    /// Requests a path, on the open connection if there is one. An answer that is not `200 OK` is turned into an
    /// error by `refused`.
    pub async fn get(
        &self,
        connection: &mut Option<Connection>,
        path: &str,
        refused: impl Fn(StatusCode, &str) -> SourceError,
    ) -> Result<Answer, SourceError> {
        self.call(connection, &Call::new(Method::GET, path), refused).await
    }

    /// Sends a request, on the open connection if there is one. An answer that is not a success is turned into an
    /// error by `refused`.
    pub async fn call(
        &self,
        connection: &mut Option<Connection>,
        call: &Call<'_>,
        refused: impl Fn(StatusCode, &str) -> SourceError,
    ) -> Result<Answer, SourceError> {
        let is_success = |status: StatusCode| match call.method {
            Method::GET => status == StatusCode::OK,
            _ => status.is_success(),
        };
        let (answer, open) = self.send(connection.take(), call, is_success, refused).await?;
        *connection = Some(open);
        let body = answer.into_body();
        Ok(Answer { body })
    }

    /// Opens a WebSocket with one of `protocols`. Returns the stream and the protocol that the server selected.
    ///
    /// `Sec-WebSocket-Accept` is not checked: it protects from caches that answer a request that they do not
    /// understand, and no cache can answer 101 within TLS.
    pub async fn open_websocket(
        &self,
        path: &str,
        protocols: &'static str,
        key: &str,
        refused: impl Fn(StatusCode, &str) -> SourceError,
    ) -> Result<(TokioIo<Upgraded>, String), SourceError> {
        let key = HeaderValue::from_str(key).map_err(|_| SourceError::new("the key of the WebSocket is invalid"))?;
        let call = Call {
            headers: vec![
                (CONNECTION, HeaderValue::from_static("Upgrade")),
                (UPGRADE, HeaderValue::from_static("websocket")),
                (SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13")),
                (SEC_WEBSOCKET_KEY, key),
                (SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocols)),
            ],
            ..Call::new(Method::GET, path)
        };
        let is_upgrade = |status| status == StatusCode::SWITCHING_PROTOCOLS;
        let (answer, _open) = self.send(None, &call, is_upgrade, refused).await?;
        let protocol = answer.headers().get(SEC_WEBSOCKET_PROTOCOL);
        let protocol = protocol.and_then(|value| value.to_str().ok()).unwrap_or_default();
        let protocol = protocol.to_owned();
        let upgraded = timeout(ANSWER_TIMEOUT, hyper::upgrade::on(answer)).await;
        let no_answer = |_| SourceError::new(format!("no WebSocket within {} s", ANSWER_TIMEOUT.as_secs()));
        Ok((TokioIo::new(upgraded.map_err(no_answer)??), protocol))
    }

    /// Sends a request on `open`, or on a new connection. Returns an answer whose status is expected.
    async fn send(
        &self,
        open: Option<Connection>,
        call: &Call<'_>,
        is_expected: impl Fn(StatusCode) -> bool,
        refused: impl Fn(StatusCode, &str) -> SourceError,
    ) -> Result<(Response<Incoming>, Connection), SourceError> {
        let grant = self.credentials.grant().await?;
        let mut reusable = open.filter(|open| !open.sender.is_closed());
        loop {
            let is_reused = reusable.is_some();
            let mut open = match reusable.take() {
                Some(open) => open,
                None => self.connect(&grant).await?,
            };
            let request = self.request(call, &grant)?;
            let sent = timeout(ANSWER_TIMEOUT, async {
                open.sender.ready().await?;
                open.sender.send_request(request).await
            });
            let no_answer = |_| SourceError::new(format!("no answer for {} s", ANSWER_TIMEOUT.as_secs()));
            let answer = match sent.await.map_err(no_answer)? {
                // The server may have closed an idle connection.
                Err(_) if is_reused => continue,
                answer => answer?,
            };
            let status = answer.status();
            if is_expected(status) {
                return Ok((answer, open));
            }
            if status == StatusCode::UNAUTHORIZED {
                self.credentials.forget();
            }
            let body = answer.into_body();
            let text = Answer { body }.error_text().await;
            return Err(refused(status, &text).status(status));
        }
    }

    fn request(&self, call: &Call<'_>, grant: &Grant) -> Result<Request<Full<Bytes>>, SourceError> {
        let prefix = self.server.path().trim_end_matches('/');
        let host = self.server.authority().map_or("", |authority| authority.as_str());
        let mut request = Request::builder()
            .method(call.method.clone())
            .uri(format!("{prefix}{}", call.path))
            .header(HOST, host)
            .header(USER_AGENT, concat!("kmesh-trace/", env!("CARGO_PKG_VERSION")))
            .body(Full::new(call.body.clone()))
            .map_err(|_| SourceError::new("the URL of the server cannot be used"))?;
        let headers = request.headers_mut();
        // A WebSocket has no content type: an API server answers 406 to a request for one.
        if !call.headers.iter().any(|(name, _)| name == UPGRADE) {
            headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        }
        if !call.body.is_empty() {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        if let Some(authorization) = &grant.authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        for (name, value) in self.headers.iter().chain(&call.headers) {
            headers.append(name, value.clone());
        }
        Ok(request)
    }

    async fn connect(&self, grant: &Grant) -> Result<Connection, SourceError> {
        let connecting = timeout(CONNECT_TIMEOUT, async {
            let stream = self.tcp().await?;
            if self.server.scheme_str() != Some("https") {
                return handshake(stream).await;
            }
            let config = self.tls.client_config(grant.identity.as_ref())?;
            let name = self.tls.server_names()?.into_iter().next();
            let name = name.ok_or_else(|| SourceError::new("the URL of the server has no host"))?;
            handshake(TlsConnector::from(Arc::new(config)).connect(name, stream).await?).await
        });
        let too_late = |_| SourceError::new(format!("no connection within {} s", CONNECT_TIMEOUT.as_secs()));
        connecting.await.map_err(too_late)?
    }

    async fn tcp(&self) -> Result<TcpStream, SourceError> {
        if let Some(address) = self.address() {
            own_connections::dial(address);
        }
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_nodelay(true);
        let stream = match &self.proxy {
            Some(proxy) => proxy.connect(&self.server, connector).await?,
            None => {
                let connected = connector.call(self.server.clone()).await;
                connected.map_err(|error| error::root_cause(&error))?
            }
        };
        let stream = stream.into_inner();
        if let (Ok(client), Ok(server)) = (stream.local_addr(), stream.peer_addr()) {
            own_connections::add(client, server);
        }
        Ok(stream)
    }

    /// Returns the address of the server. `None` if its URL has a host name, or a proxy connects to it.
    fn address(&self) -> Option<SocketAddr> {
        let host = self.server.host()?.trim_matches(['[', ']']);
        let is_https = self.server.scheme_str() == Some("https");
        let port = self.server.port_u16().unwrap_or(if is_https { 443 } else { 80 });
        self.proxy
            .is_none()
            .then_some(SocketAddr::new(host.parse().ok()?, port))
    }
}

async fn handshake(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<Connection, SourceError> {
    let mut builder = http1::Builder::new();
    let (sender, connection) = builder.max_buf_size(MAX_BUFFER).handshake(TokioIo::new(stream)).await?;
    // The request on the connection gets its errors.
    let driver = tokio::spawn(async move { _ = connection.with_upgrades().await });
    Ok(Connection { sender, driver })
}
