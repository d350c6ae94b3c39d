//! A metrics client: sends HTTP requests and parses OpenMetrics text.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use super::test_timeout;
use super::tracer::Tracer;

pub struct Response {
    /// The status line and the headers.
    pub head: String,
    pub body: String,
}

/// One series of a scrape.
#[derive(Debug)]
pub struct Series {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

/// All series of one scrape.
#[derive(Debug)]
pub struct Scrape(pub Vec<Series>);

impl Scrape {
    /// Returns the sum of the series with this name and all these labels.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.of(name, labels).map(|series| series.value).sum()
    }

    /// Returns the series with this name and all these labels.
    pub fn of<'a>(&'a self, name: &'a str, labels: &'a [(&str, &str)]) -> impl Iterator<Item = &'a Series> {
        self.0.iter().filter(move |series| {
            let has = |(label, value): &(&str, &str)| series.labels.get(*label).is_some_and(|is| is == value);
            series.name == name && labels.iter().all(has)
        })
    }
}

/// Waits until the tracer serves metrics, and returns the address.
pub fn address(tracer: &Tracer) -> SocketAddr {
    let line = tracer.wait_stderr("kmesh-trace: serving metrics on http://");
    let address = line.split("http://").nth(1).and_then(|rest| rest.split('/').next());
    address.and_then(|address| address.parse().ok()).expect("an address")
}

/// Sends a request and returns the response.
pub fn request(to: SocketAddr, method: &str, path: &str) -> Response {
    let mut stream = TcpStream::connect(to).expect("connect to the metrics port");
    stream.set_read_timeout(Some(test_timeout())).expect("SO_RCVTIMEO");
    // In one write: the server answers a request whose beginning is invalid before it has all of it.
    let request = format!("{method} {path} HTTP/1.1\r\nHost: {to}\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("send a request");
    let mut response = String::new();
    stream.read_to_string(&mut response).expect("a response in UTF-8");
    let (head, body) = response.split_once("\r\n\r\n").expect("a head and a body");
    Response {
        head: head.to_owned(),
        body: body.to_owned(),
    }
}

/// Requests `/metrics`, and parses the response.
pub fn scrape(from: SocketAddr) -> Scrape {
    let response = request(from, "GET", "/metrics");
    assert!(response.head.starts_with("HTTP/1.1 200 "), "{}", response.head);
    assert!(response.body.ends_with("# EOF\n"), "the response is cut off");
    let lines = response.body.lines().filter(|line| !line.starts_with('#'));
    Scrape(lines.map(parse_series).collect())
}

fn parse_series(line: &str) -> Series {
    let (series, value) = line.rsplit_once(' ').expect("a value");
    let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
    let mut rest = labels.strip_suffix('}').expect("a closing brace");
    let mut labels = BTreeMap::new();
    while let Some((label, after)) = rest.split_once("=\"") {
        let mut value = String::new();
        let mut chars = after.char_indices();
        let end = loop {
            match chars.next().expect("a closing quote") {
                (at, '"') => break at,
                (_, '\\') => value.push(match chars.next().expect("an escaped character").1 {
                    'n' => '\n',
                    other => other,
                }),
                (_, other) => value.push(other),
            }
        };
        assert!(
            labels.insert(label.to_owned(), value).is_none(),
            "{label} twice: {line}"
        );
        rest = after[end + 1..].trim_start_matches(',');
    }
    Series {
        name: name.to_owned(),
        labels,
        value: value.parse().expect("a number"),
    }
}
