//! What connections are grouped by.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use clap::ValueEnum;

use crate::record::{Comm, ConnId, Direction, End, Outcome, Record, Service, Workload};

/// One of the facts that `--by` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Key {
    /// Both ends' workloads. Where a pod's is not known the pod stands for it, where there is no pod the node whose address
    /// it is, else the address.
    Workload,
    /// The Service that was called. Where there is none the server's end stands for it, as for `workload`.
    Service,
    /// Both ends' pods; where there is none, as for `workload`.
    Pod,
    /// Both ends' namespaces; nothing stands for one that is not known.
    Namespace,
    /// Both ends' nodes; nothing stands for one that is not known.
    Node,
    /// The name of the process that the socket belongs to.
    Process,
    /// Both ends' addresses.
    Ip,
    /// The server's port.
    Port,
    /// How it ended; nothing while it has not.
    Outcome,
    /// Each connection on its own.
    Connection,
}

impl Key {
    /// As it is typed.
    pub fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// The keys of `--by`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct By(u16);

impl By {
    /// These keys, each once; their order does not matter.
    pub fn new(keys: &[Key]) -> Self {
        Self(keys.iter().fold(0, |all, &key| all | 1 << key as u16))
    }

    /// Whether `key` is among them.
    pub fn has(self, key: Key) -> bool {
        self.0 & (1 << key as u16) != 0
    }

    /// The group of `record`.
    pub fn group(self, record: &Record) -> Group {
        let (mut src, mut dst) = (GroupEnd::default(), GroupEnd::default());
        let names = &record.names;
        let ends = [(&mut src, &names.src, record.src), (&mut dst, &names.dst, record.dst)];
        for (place, end, address) in ends {
            self.place(place, end, address);
        }
        let called = names.service.as_ref().map(|called| &called.service);
        if self.has(Key::Service) && called.is_none() {
            dst.stand_in_for_workload(&names.dst, record.dst);
        }
        if self.has(Key::Port) {
            dst.port = Some(record.dst.port());
        }
        Group {
            direction: Some(record.direction),
            src,
            dst,
            service: self.has(Key::Service).then(|| called.cloned()),
            process: self
                .has(Key::Process)
                .then(|| record.process.as_ref().map(|process| process.comm)),
            outcome: self.has(Key::Outcome).then_some(record.outcome),
            id: self.has(Key::Connection).then_some(record.id),
        }
    }

    fn place(self, place: &mut GroupEnd, end: &End, address: SocketAddr) {
        if self.has(Key::Workload) {
            place.stand_in_for_workload(end, address);
        }
        if self.has(Key::Pod) {
            place.stand_in_for_pod(end, address);
        }
        let pod = end.pod.as_deref();
        if self.has(Key::Namespace) {
            place.namespace = pod.map(|pod| Arc::clone(&pod.namespace));
        }
        if self.has(Key::Node) {
            place.node = pod.map_or_else(|| end.node.clone(), |pod| pod.node.clone());
        }
        if self.has(Key::Ip) {
            place.ip = Some(address.ip());
        }
        if self.has(Key::Connection) {
            place.ip = Some(address.ip());
            place.port = Some(address.port());
        }
    }
}

/// Which connections are summed up together: what they have in common. Only grouped facts are there.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Group {
    /// Which end was traced: always grouped, so that a connection within the node is counted once from each end. None in
    /// the group of all that `--max-groups` has no room for.
    pub direction: Option<Direction>,
    /// The client.
    pub src: GroupEnd,
    /// The server.
    pub dst: GroupEnd,
    /// The Service that was called, if any.
    pub service: Option<Option<Arc<Service>>>,
    /// The name of the process, if it is known.
    pub process: Option<Option<Comm>>,
    /// How it ended, if it has.
    pub outcome: Option<Option<Outcome>>,
    /// The connection.
    pub id: Option<ConnId>,
}

impl Group {
    /// The group of all that `--max-groups` has no room for.
    pub fn other() -> Self {
        Self::default()
    }

    /// Whether this is it.
    pub fn is_other(&self) -> bool {
        self.direction.is_none()
    }
}

/// What is grouped of one end.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupEnd {
    /// A pod's namespace.
    pub namespace: Option<Arc<str>>,
    /// Its workload.
    pub workload: Option<Workload>,
    /// Its name.
    pub pod: Option<Arc<str>>,
    /// Its node, or the node whose own address it is.
    pub node: Option<Arc<str>>,
    /// The address.
    pub ip: Option<IpAddr>,
    /// The port.
    pub port: Option<u16>,
}

impl GroupEnd {
    fn stand_in_for_workload(&mut self, end: &End, address: SocketAddr) {
        match end.pod.as_deref() {
            Some(pod) if pod.workload.is_some() => {
                self.namespace = Some(Arc::clone(&pod.namespace));
                self.workload.clone_from(&pod.workload);
            }
            _ => self.stand_in_for_pod(end, address),
        }
    }

    fn stand_in_for_pod(&mut self, end: &End, address: SocketAddr) {
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
