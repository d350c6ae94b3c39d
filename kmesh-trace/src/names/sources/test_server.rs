//! A kubelet or API server that a test plays, and what a source under test needs besides.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use super::credentials::Credentials;
use super::health::Report;
use super::http_client::HttpClient;
use super::reporter::Reporter;
use super::tls::TlsSettings;
use crate::names::update::{Change, SourceId, SourceUpdate};

/// An answer of the server.
pub enum Reply {
    Body(String),
    /// The start of an answer that does not end.
    Open(String),
    Status(&'static str),
}

/// Answers each path, on a loopback address.
pub fn serve(answer: impl Fn(&str) -> Reply + Send + Sync + 'static) -> http::Uri {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let uri = format!("http://{}", listener.local_addr().unwrap());
    let answer = Arc::new(answer);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answer = Arc::clone(&answer);
            thread::spawn(move || _ = talk(&stream, &*answer));
        }
    });
    uri.parse().unwrap()
}

fn talk(mut stream: &TcpStream, answer: &dyn Fn(&str) -> Reply) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream);
    loop {
        let mut request = String::new();
        if lines.read_line(&mut request)? == 0 {
            return Ok(());
        }
        let mut header = String::new();
        while lines.read_line(&mut header)? > 2 {
            header.clear();
        }
        match answer(request.split(' ').nth(1).unwrap_or_default()) {
            Reply::Body(body) => {
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
                stream.write_all((head + &body).as_bytes())?;
            }
            Reply::Open(body) => {
                stream.write_all(format!("HTTP/1.1 200 OK\r\n\r\n{body}").as_bytes())?;
                while lines.read(&mut [0; 64])? > 0 {}
                return Ok(());
            }
            Reply::Status(status) => {
                let head = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
                stream.write_all(head.as_bytes())?;
            }
        }
    }
}

/// A client of a server that a test plays.
pub fn client(server: http::Uri) -> HttpClient {
    HttpClient {
        server,
        tls: TlsSettings::default(),
        proxy: None,
        credentials: Credentials::None,
        headers: Vec::new(),
    }
}

pub fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().unwrap()
}

/// A reporter, with the changes and the reports that it sends.
pub fn reporter() -> (Reporter, Receiver<Change>, Receiver<(SourceId, Report)>) {
    let (sender, changes) = channel();
    let store = move |batch: Vec<SourceUpdate>| match batch.into_iter().all(|one| sender.send(one.change).is_ok()) {
        true => ControlFlow::Continue(()),
        false => ControlFlow::Break(()),
    };
    let (reports, received) = channel();
    (Reporter::new(SourceId(0), Arc::new(store), reports), changes, received)
}
