//! Many short connections, and what the record of each end must say.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::thread;

use serde_json::Value;

use super::expect::own_comm;
use super::random::Random;
use super::sock::{IpVersion, exchange, listen, pair_with, wait_all_closed};

/// Makes `count` connections to the scenario's loopback address, and waits until both ends of each have closed cleanly.
pub fn make_traffic(count: usize) {
    let listener = listen(IpVersion::V4);
    make_traffic_to(&listener, count);
    wait_all_closed(listener.local_addr().expect("the listener's address"));
}

/// Makes `count` connections to this listener. Both ends close cleanly.
pub fn make_traffic_to(listener: &TcpListener, count: usize) {
    for _ in 0..count {
        let pair = pair_with(listener);
        exchange(&pair, 10, 20);
        pair.close_client_first();
    }
}

/// The members of a record that are compared where there are thousands of records.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CompactRecord {
    pub is_inbound: bool,
    pub src: String,
    pub dst: String,
    pub sent: u64,
    pub received: u64,
    outcome: String,
    closed_by: String,
    /// The name and the pid, as the log prints them.
    process: String,
}

impl CompactRecord {
    /// Whether the server has this address.
    pub fn is_to(&self, server: Ipv4Addr) -> bool {
        self.dst.parse::<SocketAddr>().is_ok_and(|dst| dst.ip() == server)
    }

    /// Returns the record of the same end with an unknown process.
    pub fn without_process(&self) -> Self {
        Self {
            process: "/null".to_owned(),
            ..self.clone()
        }
    }

    pub fn from_json(record: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let address = |end: &Value| format!("{}:{}", text(&end["ip"]), end["port"]);
        let process = &record["process"];
        Self {
            is_inbound: record["direction"] == "inbound",
            src: address(&record["src"]),
            dst: address(&record["dst"]),
            sent: record["sent_bytes"].as_u64().unwrap_or(u64::MAX),
            received: record["received_bytes"].as_u64().unwrap_or(u64::MAX),
            outcome: text(&record["outcome"]),
            closed_by: text(&record["closed_by"]),
            process: format!("{}/{}", text(&process["comm"]), process["pid"]),
        }
    }

    pub fn from_log_line(line: &str) -> Self {
        let field = |name: &str| {
            let (_, rest) = line
                .split_once(&format!(" {name}="))
                .unwrap_or_else(|| panic!("no {name} in {line}"));
            let value = rest.split([',', '\n']).next().unwrap_or_default();
            value.trim_matches('"').to_owned()
        };
        Self {
            is_inbound: field("direction") == "INBOUND",
            src: field("src.addr"),
            dst: field("dst.addr"),
            sent: field("sent_bytes").parse().unwrap_or(u64::MAX),
            received: field("received_bytes").parse().unwrap_or(u64::MAX),
            outcome: field("outcome"),
            closed_by: field("closed_by"),
            process: field("process"),
        }
    }
}

/// Makes `count` connections with random payloads to this address. Returns the expected records.
pub fn random_traffic(server: Ipv4Addr, count: usize) -> Vec<CompactRecord> {
    random_traffic_while(server, |made| made < count)
}

/// Makes `count` connections to each of these addresses, in a thread for each. Returns the expected records.
pub fn random_traffic_to_all(servers: &[Ipv4Addr], count: usize) -> Vec<CompactRecord> {
    thread::scope(|scope| {
        let threads: Vec<_> = servers
            .iter()
            .map(|&server| scope.spawn(move || random_traffic(server, count)))
            .collect();
        let records = threads.into_iter().map(|thread| thread.join().expect("traffic"));
        records.flatten().collect()
    })
}

/// Makes connections to this address while `go_on` returns true for the number of connections made. Sizes are random,
/// and either end closes first. Returns when all have ended, with the expected records.
pub fn random_traffic_while(server: Ipv4Addr, mut go_on: impl FnMut(usize) -> bool) -> Vec<CompactRecord> {
    let address = SocketAddr::from((server, 0));
    // Several listeners, since a closed connection occupies its client's port for a minute.
    let listeners: Vec<TcpListener> = (0..4).map(|_| TcpListener::bind(address).expect("listen")).collect();
    let process = format!("{}/{}", own_comm(), std::process::id());
    let mut random = Random::new(u64::from(server.octets()[3]));
    let mut records = Vec::new();
    let mut made = 0;
    while go_on(made) {
        let pair = pair_with(&listeners[made % listeners.len()]);
        let (up, down) = (random.below(2001), random.below(2001));
        exchange(&pair, usize::try_from(up).unwrap(), usize::try_from(down).unwrap());
        let client_closes_first = random.one_in(2);
        let truth = if client_closes_first {
            pair.close_client_first()
        } else {
            pair.close_server_first()
        };
        for is_inbound in [false, true] {
            let is_first = is_inbound != client_closes_first;
            records.push(CompactRecord {
                is_inbound,
                src: truth.src.to_string(),
                dst: truth.dst.to_string(),
                sent: if is_inbound { down } else { up },
                received: if is_inbound { up } else { down },
                outcome: "ok".to_owned(),
                closed_by: if is_first { "local" } else { "peer" }.to_owned(),
                process: process.clone(),
            });
        }
        made += 1;
    }
    for listener in listeners {
        wait_all_closed(listener.local_addr().expect("the listener's address"));
    }
    records
}
