//! The flags that choose connections.

use std::ffi::OsStr;
use std::time::Duration;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::error::Error;
use clap::{Arg, Args, Command};

use crate::config::{self, Size};
use crate::filter::{
    IdPrefix, NamePattern, NamespacePattern, Network, Pid, PodPattern, PortRange, Selector, ServicePattern, Term,
    WorkloadPattern,
};
use crate::record::{Direction, Outcome};

/// Filters, as they are typed.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Filters")]
pub struct Filters {
    /// The namespace of a pod at either end, or of the Service: shop, 'team-*'
    #[arg(short, long, value_name = "NAMESPACE", value_delimiter = ',')]
    pub namespace: Vec<Term<NamespacePattern>>,

    /// The namespace of the client's pod
    #[arg(long, value_name = "NAMESPACE", value_delimiter = ',')]
    pub from_namespace: Vec<Term<NamespacePattern>>,

    /// The namespace of the server's pod, or of the Service
    #[arg(long, value_name = "NAMESPACE", value_delimiter = ',')]
    pub to_namespace: Vec<Term<NamespacePattern>>,

    /// A pod at either end: web-0, shop/web-0, 'web-*'
    #[arg(long, value_name = "POD", value_delimiter = ',')]
    pub pod: Vec<Term<PodPattern>>,

    /// The client's pod
    #[arg(long, value_name = "POD", value_delimiter = ',')]
    pub from_pod: Vec<Term<PodPattern>>,

    /// The server's pod
    #[arg(long, value_name = "POD", value_delimiter = ',')]
    pub to_pod: Vec<Term<PodPattern>>,

    /// The workload of a pod at either end: web, Deployment/web, 'CronJob/*'
    ///
    /// What controls the pod: a Deployment, a StatefulSet, a DaemonSet, a CronJob, a Job, one of another kind, or the Pod itself.
    #[arg(long, value_name = "WORKLOAD", value_delimiter = ',')]
    pub workload: Vec<Term<WorkloadPattern>>,

    /// The workload of the client's pod
    #[arg(long, value_name = "WORKLOAD", value_delimiter = ',')]
    pub from_workload: Vec<Term<WorkloadPattern>>,

    /// The workload of the server's pod
    #[arg(long, value_name = "WORKLOAD", value_delimiter = ',')]
    pub to_workload: Vec<Term<WorkloadPattern>>,

    /// The Service that was called: web, shop/web, web.shop.svc.cluster.local
    #[arg(long, value_name = "SERVICE", value_delimiter = ',')]
    pub service: Vec<Term<ServicePattern>>,

    /// The labels of a pod at either end, as kubectl selects: 'app=web,tier!=db'
    ///
    /// a=b, a==b, a!=b, a in (x,y), a notin (x,y), a, !a, a>1, a<9. A comma means AND, and so does a repeated flag: one
    /// pod must have it all.
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    pub selector: Vec<Selector>,

    /// The labels of the client's pod
    #[arg(long, value_name = "SELECTOR")]
    pub from_selector: Vec<Selector>,

    /// The labels of the server's pod
    #[arg(long, value_name = "SELECTOR")]
    pub to_selector: Vec<Selector>,

    /// The server's port, or a range: 443, 8000-8999
    #[arg(short, long, value_name = "PORT", value_delimiter = ',')]
    pub port: Vec<Term<PortRange>>,

    /// The client's port
    #[arg(long, value_name = "PORT", value_delimiter = ',')]
    pub from_port: Vec<Term<PortRange>>,

    /// The server's port, as --port
    #[arg(long, value_name = "PORT", value_delimiter = ',')]
    pub to_port: Vec<Term<PortRange>>,

    /// The address of either end, or its network: 10.0.0.1, 10.0.0.0/8, fd00::/8
    ///
    /// That of the socket: where a connection is translated on the way, what the program dialled.
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    pub ip: Vec<Term<Network>>,

    /// The client's address or network
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    pub from_ip: Vec<Term<Network>>,

    /// The server's address or network
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    pub to_ip: Vec<Term<Network>>,

    /// Only IPv4, of IPv6 sockets, too
    #[arg(short = '4', conflicts_with = "ipv6")]
    pub ipv4: bool,

    /// Only IPv6
    #[arg(short = '6')]
    pub ipv6: bool,

    /// The process that the socket belongs to
    #[arg(long, value_name = "PID", value_delimiter = ',')]
    pub pid: Vec<Term<Pid>>,

    /// The name of that process, of which the kernel keeps 15 bytes: nginx, 'kube*'
    ///
    /// Upper and lower case differ. A comma cannot be written; '*' finds it.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub comm: Vec<Term<NamePattern>>,

    /// The container of the socket, by the first digits of its id
    #[arg(long, value_name = "ID", value_delimiter = ',')]
    pub container: Vec<Term<IdPrefix>>,

    /// Which end was traced: inbound (the server's) or outbound (the client's)
    #[arg(long, value_name = "DIRECTION", value_delimiter = ',', value_parser = OneOf(Direction::ALL, Direction::name))]
    #[arg(hide_possible_values = true)]
    pub direction: Vec<Term<Direction>>,

    /// How it ended
    ///
    /// ok, refused, connect_timeout, connect_aborted, unreachable, reset_by_peer, reset_by_local, timeout or unknown.
    #[arg(long, value_name = "OUTCOME", value_delimiter = ',', value_parser = OneOf(Outcome::ALL, Outcome::name))]
    #[arg(hide_possible_values = true)]
    pub outcome: Vec<Term<Outcome>>,

    /// Ended with any outcome but ok
    #[arg(long)]
    pub failed: bool,

    /// No attempts that never connected
    #[arg(long)]
    pub established_only: bool,

    /// Only the slow: 100ms, 2s
    ///
    /// A connection that was open before tracing began counts with the time that it was watched.
    #[arg(long, value_name = "TIME", value_parser = config::min_duration)]
    pub min_duration: Option<Duration>,

    /// Only the large, both directions together: 64Ki, 1M
    #[arg(long, value_name = "SIZE")]
    pub min_bytes: Option<Size>,
}

/// Parses a term whose value is one of these, known by their names. What is none of them is told the nearest.
#[derive(Clone, Copy, Debug)]
struct OneOf<T: 'static>(&'static [T], fn(T) -> &'static str);

impl<T: Copy> OneOf<T> {
    fn names(self) -> impl Iterator<Item = PossibleValue> {
        self.0.iter().map(move |&value| PossibleValue::new(self.1(value)))
    }
}

impl<T: Copy + Send + Sync + 'static> TypedValueParser for OneOf<T> {
    type Value = Term<T>;

    fn parse_ref(&self, command: &Command, arg: Option<&Arg>, value: &OsStr) -> Result<Self::Value, Error> {
        // What is no UTF-8 is no name either way.
        let (negated, name) = match value.to_str().and_then(|value| value.strip_prefix('!')) {
            Some(name) => (true, OsStr::new(name)),
            None => (false, value),
        };
        let Self(values, name_of) = *self;
        let parser = PossibleValuesParser::new(self.names()).try_map(move |name| {
            let named = values.iter().find(|&&value| name_of(value) == name);
            named.copied().ok_or("there is no such name")
        });
        let value = parser.parse_ref(command, arg, name)?;
        Ok(Term { negated, value })
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(self.names()))
    }
}
