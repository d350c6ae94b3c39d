//! The keys and groups of connections.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use clap::ValueEnum;

use crate::record::{Comm, ConnId, Direction, End, EndOutcomes, Record, Service, Workload};

/// A key of `--by`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Key {
    /// The workloads of both ends. An end without a workload is grouped by its pod, else by the node that has its
    /// address, else by its address.
    Workload,
    /// The Service that the client called. Without a Service, the server's end is grouped as by `workload`.
    Service,
    /// The pods of both ends. An end without a pod is grouped as by `workload`.
    Pod,
    /// The namespaces of both ends.
    Namespace,
    /// The nodes of both ends. The node of the traced end is known without names.
    Node,
    /// The name of the process that owns the socket.
    Process,
    /// The ID of the process that owns the socket.
    Pid,
    /// The addresses of both ends.
    Ip,
    /// The port of the server.
    Port,
    /// How the connection ended.
    Outcome,
    /// The ID of the connection, so that each one is a group.
    Connection,
}

impl Key {
    /// Returns the name that a user types.
    pub fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// The keys of `--by`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct By(u16);

impl By {
    /// Returns the set of these keys.
    pub fn new(keys: &[Key]) -> Self {
        Self(keys.iter().fold(0, |all, &key| all | 1 << key as u16))
    }

    pub fn has(self, key: Key) -> bool {
        self.0 & (1 << key as u16) != 0
    }

    /// Returns the group of `record`.
    pub fn group(self, record: &Record) -> Group {
        let (mut src, mut dst) = (GroupEnd::default(), GroupEnd::default());
        let (src_names, dst_names) = record.end_names();
        let ends = [(&mut src, src_names, record.src), (&mut dst, dst_names, record.dst)];
        for (group_end, end, address) in ends {
            self.set_end(group_end, end, address);
        }
        if self.has(Key::Node) {
            // The node of a socket is known without names.
            let (client, server) = record.both_ends();
            for (group_end, end) in [(&mut src, client), (&mut dst, server)] {
                let node = || end.map(|end| Arc::clone(&end.node));
                group_end.node = group_end.node.take().or_else(node);
            }
        }
        let service = record.service().map(|found| &found.service);
        if self.has(Key::Service) && service.is_none() {
            dst.set_workload(dst_names, record.dst);
        }
        if self.has(Key::Port) {
            dst.port = Some(record.dst.port());
        }
        let process = record.process.as_ref();
        Group {
            direction: Some(record.direction),
            src,
            dst,
            service: self.has(Key::Service).then(|| service.cloned()),
            process: self.has(Key::Process).then(|| process.map(|process| process.comm)),
            pid: self.has(Key::Pid).then(|| process.map(|process| process.pid)),
            outcome: self.has(Key::Outcome).then(|| record.end_outcomes()),
            id: self.has(Key::Connection).then_some(record.id),
        }
    }

    fn set_end(self, group_end: &mut GroupEnd, end: &End, address: SocketAddr) {
        if self.has(Key::Workload) {
            group_end.set_workload(end, address);
        }
        if self.has(Key::Pod) {
            group_end.set_pod(end, address);
        }
        let pod = end.pod.as_deref();
        if self.has(Key::Namespace) {
            group_end.namespace = pod.map(|pod| Arc::clone(&pod.namespace));
        }
        if self.has(Key::Node) {
            group_end.node = pod.map_or_else(|| end.node.clone(), |pod| pod.node.clone());
        }
        if self.has(Key::Ip) {
            group_end.ip = Some(address.ip());
        }
        if self.has(Key::Connection) {
            group_end.ip = Some(address.ip());
            group_end.port = Some(address.port());
        }
    }
}

/// The facts that the connections of a group share. Facts that are not grouped are `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Group {
    /// The end that was traced. It is always grouped, so that a connection within the node counts once from each end.
    /// `None` in the group `other`.
    pub direction: Option<Direction>,
    pub src: GroupEnd,
    pub dst: GroupEnd,
    /// The Service that the clients called. `Some(None)`: no Service is known.
    pub service: Option<Option<Arc<Service>>>,
    /// The name of the process. `Some(None)`: the process is unknown.
    pub process: Option<Option<Comm>>,
    /// The ID of the process. `Some(None)`: the process is unknown.
    pub pid: Option<Option<u32>>,
    /// How the connections ended. `Some(None)`: they have not ended.
    pub outcome: Option<Option<EndOutcomes>>,
    pub id: Option<ConnId>,
}

impl Group {
    /// Returns the group of the connections beyond `--max-groups`.
    pub fn other() -> Self {
        Self::default()
    }

    pub fn is_other(&self) -> bool {
        self.direction.is_none()
    }
}

/// The grouped facts of one end.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupEnd {
    /// The namespace of the pod.
    pub namespace: Option<Arc<str>>,
    pub workload: Option<Workload>,
    /// The name of the pod.
    pub pod: Option<Arc<str>>,
    /// The node of the pod, or the node that has the address.
    pub node: Option<Arc<str>>,
    pub ip: Option<IpAddr>,
    pub port: Option<u16>,
}

impl GroupEnd {
    fn set_workload(&mut self, end: &End, address: SocketAddr) {
        match end.pod.as_deref() {
            Some(pod) if pod.workload.is_some() => {
                self.namespace = Some(Arc::clone(&pod.namespace));
                self.workload.clone_from(&pod.workload);
            }
            _ => self.set_pod(end, address),
        }
    }

    fn set_pod(&mut self, end: &End, address: SocketAddr) {
        match (end.pod.as_deref(), &end.node) {
            (Some(pod), _) => {
                self.namespace = Some(Arc::clone(&pod.namespace));
                self.pod = Some(Arc::clone(&pod.name));
            }
            (None, Some(node)) => self.node = Some(Arc::clone(node)),
            (None, None) => self.ip = Some(address.ip()),
        }
    }
}
