//! A scraper: HTTP by hand, and OpenMetrics text as series.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use super::patience;
use super::tracer::Tracer;

/// What a server answered.
pub struct Answer {
    /// Its first line and its headers.
    pub head: String,
    /// What followed.
    pub body: String,
}

/// One series.
#[derive(Debug)]
pub struct Series {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
}

/// What was scraped.
#[derive(Debug)]
pub struct Scrape(pub Vec<Series>);

impl Scrape {
    /// The sum of the series of this name that have all these labels.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.of(name, labels).map(|series| series.value).sum()
    }

    /// Those series.
    pub fn of<'a>(&'a self, name: &'a str, labels: &'a [(&str, &str)]) -> impl Iterator<Item = &'a Series> {
        self.0.iter().filter(move |series| {
            let has = |(label, value): &(&str, &str)| series.labels.get(*label).is_some_and(|is| is == value);
            series.name == name && labels.iter().all(has)
        })
    }
}

/// Where a tracer serves.
pub fn address(tracer: &Tracer) -> SocketAddr {
    let said = tracer.wait_said("kmesh-trace: serving metrics on http://");
    let address = said.split("http://").nth(1).and_then(|rest| rest.split('/').next());
    address.and_then(|address| address.parse().ok()).expect("an address")
}

/// One request, as a program would make it.
pub fn request(to: SocketAddr, method: &str, path: &str) -> Answer {
    let mut stream = TcpStream::connect(to).expect("connect to the metrics port");
    stream.set_read_timeout(Some(patience())).expect("a time limit");
    // At once: what begins badly is answered before there is more of it.
    let request = format!("{method} {path} HTTP/1.1\r\nHost: {to}\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("send a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer in UTF-8");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    Answer {
        head: head.to_owned(),
        body: body.to_owned(),
    }
}

/// Scrapes.
pub fn scrape(from: SocketAddr) -> Scrape {
    let answer = request(from, "GET", "/metrics");
    assert!(answer.head.starts_with("HTTP/1.1 200 "), "{}", answer.head);
    assert!(answer.body.ends_with("# EOF\n"), "cut off");
    Scrape(
        answer
            .body
            .lines()
            .filter(|line| !line.starts_with('#'))
            .map(series)
            .collect(),
    )
}

fn series(line: &str) -> Series {
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
                (_, '\\') => value.push(match chars.next().expect("something escaped").1 {
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
