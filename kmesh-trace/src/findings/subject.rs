//! The names of the ends of a pair for people, and the filter flags that select its connections.

use std::sync::Arc;

use super::watch::{Listener, Pair};
use crate::record::{Comm, End};
use crate::rollup::{Group, GroupEnd};

/// Returns the name of a client: its workload or pod, else its address and its process.
pub fn client(pair: &Pair) -> String {
    let name = end(&pair.group.src);
    match pair.processes.main() {
        Some((_, comm)) if pair.group.src.ip.is_some() && pair.is_outbound() => format!("{name} ({})", text(comm)),
        _ => name,
    }
}

/// Returns the name and port of a server: its Service, workload or pod, else its address.
pub fn server(pair: &Pair) -> String {
    let name = match &pair.group.service {
        Some(Some(service)) => format!("{}/{}", service.namespace, service.name),
        _ => end(&pair.group.dst),
    };
    with_port(name, pair.group.dst.port)
}

/// Adds a port to a name or an address: `shop/payments:8443`, `[::1]:8443`.
pub fn with_port(name: String, port: Option<u16>) -> String {
    match port {
        Some(port) if name.contains(':') => format!("[{name}]:{port}"),
        Some(port) => format!("{name}:{port}"),
        None => name,
    }
}

/// Returns the name of one end.
pub fn end(end: &GroupEnd) -> String {
    let name = match (&end.workload, &end.pod, &end.node, end.ip) {
        (_, Some(pod), ..) => pod,
        (Some(workload), ..) => &workload.name,
        (None, None, Some(node), Some(ip)) => return format!("node {node} ({ip})"),
        (None, None, _, Some(ip)) => return ip.to_string(),
        _ => return "other clients".to_owned(),
    };
    match &end.namespace {
        Some(namespace) => format!("{namespace}/{name}"),
        None => name.to_string(),
    }
}

/// Returns the name of a listener, with its port.
pub fn listener(listener: &Listener) -> String {
    match &listener.end.pod {
        Some(pod) => format!("{}/{}:{}", pod.namespace, pod.name, listener.address.port()),
        None => listener.address.to_string(),
    }
}

/// Returns the name of a process: `nginx/4711`.
pub fn process((pid, comm): (u32, Comm)) -> String {
    format!("{}/{pid}", text(comm))
}

/// Returns the name of a process without its ID.
pub fn text(comm: Comm) -> String {
    String::from_utf8_lossy(comm.as_bytes()).into_owned()
}

/// The flags that select connections, without quotes for the shell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flags(Vec<String>);

impl Flags {
    /// Returns the flags that select the connections of a pair.
    pub fn of(pair: &Pair) -> Self {
        let group = &pair.group;
        let mut flags = Self::default();
        flags.end("from", &group.src);
        match &group.service {
            Some(Some(service)) => flags.add("service", format!("{}/{}", service.namespace, service.name)),
            _ => flags.end("to", &group.dst),
        }
        if let Some(port) = group.dst.port {
            flags.add("to-port", port);
        }
        flags
    }

    fn end(&mut self, side: &str, end: &GroupEnd) {
        match (&end.workload, &end.pod, end.ip) {
            (Some(workload), ..) => {
                if let Some(namespace) = &end.namespace {
                    self.add(&format!("{side}-namespace"), namespace);
                }
                self.add(&format!("{side}-workload"), &workload.name);
            }
            (None, Some(pod), _) => {
                let namespace = end.namespace.as_deref().unwrap_or("*");
                self.add(&format!("{side}-pod"), format!("{namespace}/{pod}"));
            }
            (None, None, Some(ip)) => self.add(&format!("{side}-ip"), ip),
            _ => {}
        }
    }

    /// Adds a flag with its value.
    pub fn add(&mut self, flag: &str, value: impl ToString) {
        self.0.extend([format!("--{flag}"), value.to_string()]);
    }

    /// Adds a flag with its value.
    pub fn with(mut self, flag: &str, value: impl ToString) -> Self {
        self.add(flag, value);
        self
    }

    /// Adds a flag without a value.
    pub fn with_switch(mut self, flag: &str) -> Self {
        self.0.push(format!("--{flag}"));
        self
    }

    /// Returns the words of the flags.
    pub fn words(&self) -> &[String] {
        &self.0
    }
}

/// Returns the group of a server alone, for findings that are about no pair.
pub fn server_group(end: &End, address: std::net::SocketAddr) -> Group {
    let mut dst = GroupEnd {
        port: Some(address.port()),
        ..GroupEnd::default()
    };
    match &end.pod {
        Some(pod) => {
            dst.namespace = Some(Arc::clone(&pod.namespace));
            dst.pod = Some(Arc::clone(&pod.name));
            dst.workload.clone_from(&pod.workload);
        }
        None => dst.ip = Some(address.ip()),
    }
    Group {
        direction: Some(crate::record::Direction::Inbound),
        dst,
        ..Group::default()
    }
}
