//! Runs a process in a pod: `kubectl exec` over a WebSocket.
//!
//! Each message begins with a byte, the channel: 0 is standard input, 1 standard output, 2 standard error, 3 the status
//! of the process when it has ended.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use hyper::body::Bytes;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::{Error, Message};

use super::api::Api;
use crate::names::sources::error::SourceError;

/// The protocols of Kubernetes. The first one can close standard input; servers before 1.30 know only the second one.
const PROTOCOLS: &str = "v5.channel.k8s.io, v4.channel.k8s.io";

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;

type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// The standard input of a process in a pod.
pub struct Input(SplitSink<Socket, Message>);

/// The output of a process in a pod.
pub struct Output(SplitStream<Socket>);

/// A part of the output of a process.
#[derive(Debug, PartialEq, Eq)]
pub enum Part {
    Stdout(Bytes),
    Stderr(Bytes),
    Ended(Ending),
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    Succeeded,
    /// The exit status of the process.
    Failed(i32),
    /// The process did not start, or its status is unknown.
    Error(String),
}

/// Runs `command` in the pod.
pub async fn exec(api: &Api, pod: &str, command: &[String]) -> Result<(Input, Output), SourceError> {
    let nanoseconds = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_nanos();
    let key = STANDARD.encode(nanoseconds.to_le_bytes());
    let path = api.exec_path(pod, command);
    let refused = |status, body: &str| api.refused_exec(status, body);
    let (stream, protocol) = api.client.open_websocket(&path, PROTOCOLS, &key, refused).await?;
    if !PROTOCOLS.split(", ").any(|known| known == protocol) {
        return Err(SourceError::new(
            "the API server selected no protocol for exec that is known",
        ));
    }
    let socket = WebSocketStream::from_raw_socket(stream, Role::Client, None).await;
    let (input, output) = socket.split();
    Ok((Input(input), Output(output)))
}

impl Input {
    /// Sends bytes to the process.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), SourceError> {
        let message = [&[STDIN], bytes].concat();
        self.0
            .send(Message::Binary(message.into()))
            .await
            .map_err(|error| failed(&error))
    }
}

impl Output {
    /// Returns the next part. The end of the connection before the process has ended is an error.
    pub async fn next(&mut self) -> Result<Part, SourceError> {
        loop {
            let message = self.0.next().await;
            let message = message.ok_or_else(|| SourceError::new("the connection ended"))?;
            let bytes = match message.map_err(|error| failed(&error))? {
                Message::Binary(bytes) => bytes,
                Message::Text(text) => text.into(),
                Message::Close(_) => return Err(SourceError::new("the connection was closed")),
                _ => continue,
            };
            if let Some(part) = part(&bytes) {
                return Ok(part);
            }
        }
    }
}

/// Returns what a message contains. Servers open each channel with an empty message.
fn part(message: &Bytes) -> Option<Part> {
    let content = message.slice(message.len().min(1)..);
    match *message.first()? {
        _ if content.is_empty() => None,
        STDOUT => Some(Part::Stdout(content)),
        STDERR => Some(Part::Stderr(content)),
        STATUS => Some(Part::Ended(ending(&content))),
        _ => None,
    }
}

/// Parses the status of a process: a Kubernetes `Status`, whose causes contain the exit status.
fn ending(status: &[u8]) -> Ending {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Status {
        status: String,
        message: String,
        details: Details,
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Details {
        causes: Vec<Cause>,
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Cause {
        reason: String,
        message: String,
    }
    let status: Status = serde_json::from_slice(status).unwrap_or_default();
    if status.status == "Success" {
        return Ending::Succeeded;
    }
    let code = status.details.causes.iter().find(|cause| cause.reason == "ExitCode");
    match code.and_then(|cause| cause.message.parse().ok()) {
        Some(code) => Ending::Failed(code),
        None if status.message.is_empty() => Ending::Error("it ended for an unknown reason".to_owned()),
        None => Ending::Error(status.message),
    }
}

fn failed(error: &Error) -> SourceError {
    match error {
        Error::ConnectionClosed | Error::AlreadyClosed => SourceError::new("the connection was closed"),
        Error::Protocol(_) => SourceError::new("the connection broke off"),
        Error::Io(error) => SourceError::new(error.to_string()),
        error => SourceError::new(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_is_a_channel_and_its_content() {
        let message = |bytes: &'static [u8]| part(&Bytes::from_static(bytes));
        assert_eq!(
            message(b"\x01line\n"),
            Some(Part::Stdout(Bytes::from_static(b"line\n")))
        );
        assert_eq!(
            message(b"\x02warning\n"),
            Some(Part::Stderr(Bytes::from_static(b"warning\n")))
        );
        for empty in [&b""[..], b"\x01", b"\x02", b"\x03", b"\x07x"] {
            assert_eq!(part(&Bytes::from_static(empty)), None, "{empty:?}");
        }
    }

    #[test]
    fn status_of_a_process_is_parsed() {
        let cases = [
            (r#"{"metadata":{},"status":"Success"}"#, Ending::Succeeded),
            (
                r#"{"metadata":{},"status":"Failure","message":"command terminated with non-zero exit code","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"3"}]}}"#,
                Ending::Failed(3),
            ),
            (
                r#"{"status":"Failure","message":"container not found","reason":"InternalError"}"#,
                Ending::Error("container not found".to_owned()),
            ),
            ("no json", Ending::Error("it ended for an unknown reason".to_owned())),
        ];
        for (status, expected) in cases {
            assert_eq!(ending(status.as_bytes()), expected, "{status}");
        }
    }
}
