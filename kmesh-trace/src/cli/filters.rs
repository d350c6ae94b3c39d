//! Flags that choose connections.

use std::ffi::OsStr;
use std::time::Duration;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::error::Error;
use clap::{Arg, Args, Command, Parser};

use super::values::{self, Size};
use crate::filter::{
    CommPattern, ContainerPrefix, NamePattern, Network, Pid, PodPattern, PortRange, Selector, ServicePattern, Term,
    WorkloadPattern,
};
use crate::record::{Direction, Outcome};

/// Flags that choose connections.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Filters")]
pub struct Filters {
    /// Match the namespace of a pod or of the service
    ///
    /// A pod at either end matches.
    ///
    /// Example: kmesh-trace -n 'shop,team-*'
    #[arg(short, long, value_name = "NAME", value_delimiter = ',')]
    pub namespace: Vec<Term<NamePattern>>,

    /// Match all namespaces, as without --namespace
    ///
    /// kubectl has the same flag.
    ///
    /// Example: kmesh-trace -A --failed
    #[arg(short = 'A', long, conflicts_with_all = ["namespace", "from_namespace", "to_namespace"])]
    pub all_namespaces: bool,

    /// Match the namespace of the client's pod
    ///
    /// Example: kmesh-trace --from-namespace shop
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub from_namespace: Vec<Term<NamePattern>>,

    /// Match the server's or the service's namespace
    ///
    /// Example: kmesh-trace --to-namespace '!kube-system'
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub to_namespace: Vec<Term<NamePattern>>,

    /// Match a pod at either end
    ///
    /// A pod is name or namespace/name.
    ///
    /// Example: kmesh-trace --pod web-0,'shop/cart-*'
    #[arg(long, value_name = "POD", value_delimiter = ',')]
    pub pod: Vec<Term<PodPattern>>,

    /// Match the client's pod
    ///
    /// Example: kmesh-trace --from-pod 'shop/web-*'
    #[arg(long, value_name = "POD", value_delimiter = ',')]
    pub from_pod: Vec<Term<PodPattern>>,

    /// Match the server's pod
    ///
    /// Example: kmesh-trace --to-pod database-0
    #[arg(long, value_name = "POD", value_delimiter = ',')]
    pub to_pod: Vec<Term<PodPattern>>,

    /// Match the workload of a pod at either end
    ///
    /// A workload is name or Kind/name. It is the controller of the pod: a Deployment, a StatefulSet, a DaemonSet, a
    /// CronJob, a Job, an object of another kind, or the Pod itself.
    ///
    /// Example: kmesh-trace --workload web,'CronJob/*'
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub workload: Vec<Term<WorkloadPattern>>,

    /// Match the workload of the client's pod
    ///
    /// Example: kmesh-trace --from-workload Deployment/web
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub from_workload: Vec<Term<WorkloadPattern>>,

    /// Match the workload of the server's pod
    ///
    /// Example: kmesh-trace --to-workload 'StatefulSet/*'
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub to_workload: Vec<Term<WorkloadPattern>>,

    /// Match the service that the client called
    ///
    /// A service is name, namespace/name, or its full DNS name.
    ///
    /// Example: kmesh-trace --service shop/web,database.data.svc.cluster.local
    #[arg(long, value_name = "SERVICE", value_delimiter = ',')]
    pub service: Vec<Term<ServicePattern>>,

    /// Match the labels of a pod at either end
    ///
    /// The grammar is kubectl's: a=b, a==b, a!=b, a in (x,y), a notin (x,y), a, !a, a>1, a<9. A comma means AND, and so
    /// does a repeated flag: the labels of one pod must satisfy every requirement.
    ///
    /// Example: kmesh-trace -l 'app=web,tier!=db'
    #[arg(short = 'l', long, value_name = "LABELS")]
    pub selector: Vec<Selector>,

    /// Match the labels of the client's pod
    ///
    /// Example: kmesh-trace --from-selector 'app in (web,cart)'
    #[arg(long, value_name = "LABELS")]
    pub from_selector: Vec<Selector>,

    /// Match the labels of the server's pod
    ///
    /// Example: kmesh-trace --to-selector app=database
    #[arg(long, value_name = "LABELS")]
    pub to_selector: Vec<Selector>,

    /// Match the server's port: 443, 8000-8999
    ///
    /// For a translated connection, the port is the one that the program dialled.
    ///
    /// Example: kmesh-trace -p 443,8000-8999
    #[arg(short, long, value_name = "PORT", value_delimiter = ',')]
    pub port: Vec<Term<PortRange>>,

    /// Match the client's port
    ///
    /// Example: kmesh-trace --from-port 32768-60999
    #[arg(long, value_name = "PORT", value_delimiter = ',')]
    pub from_port: Vec<Term<PortRange>>,

    /// Match the server's port, like --port
    ///
    /// Example: kmesh-trace --to-port '!443'
    #[arg(long, value_name = "PORT", value_delimiter = ',')]
    pub to_port: Vec<Term<PortRange>>,

    /// Match the address of either end, or its network
    ///
    /// For a translated connection, the server's address is the one that the program dialled.
    ///
    /// Example: kmesh-trace --ip 10.0.0.1,fd00::/8
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    pub ip: Vec<Term<Network>>,

    /// Match the client's address or network
    ///
    /// Example: kmesh-trace --from-ip '10.0.0.0/8,!10.0.0.7'
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    pub from_ip: Vec<Term<Network>>,

    /// Match the server's address or network
    ///
    /// Example: kmesh-trace --to-ip 10.96.0.1
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    pub to_ip: Vec<Term<Network>>,

    /// Match IPv4 connections only
    ///
    /// IPv4 connections of IPv6 sockets match, too.
    ///
    /// Example: kmesh-trace -4
    #[arg(short = '4', conflicts_with = "ipv6")]
    pub ipv4: bool,

    /// Match IPv6 connections only
    ///
    /// Example: kmesh-trace -6
    #[arg(short = '6')]
    pub ipv6: bool,

    /// Match the id of the local process
    ///
    /// Example: kmesh-trace --pid 4711
    #[arg(long, value_name = "PID", value_delimiter = ',')]
    pub pid: Vec<Term<Pid>>,

    /// Match the name of the local process
    ///
    /// The kernel stores the first 15 bytes of a name. Upper and lower case differ. A * can replace a comma, which
    /// separates values.
    ///
    /// Example: kmesh-trace --comm nginx,'kube*'
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub comm: Vec<Term<CommPattern>>,

    /// Match the start of the local container's id
    ///
    /// Example: kmesh-trace --container 3f9a02
    #[arg(long, value_name = "ID", value_delimiter = ',')]
    pub container: Vec<Term<ContainerPrefix>>,

    /// Match the traced end: inbound or outbound
    ///
    /// inbound is the server's end, outbound the client's. A connection within this node has both.
    ///
    /// Example: kmesh-trace --direction outbound
    #[arg(long, value_name = "DIRECTION", value_delimiter = ',', hide_possible_values = true)]
    #[arg(value_parser = NameParser(Direction::ALL, Direction::name))]
    pub direction: Vec<Term<Direction>>,

    /// Match how the connection ended, for example ok
    ///
    /// The outcomes are ok, refused, connect_timeout, connect_aborted, unreachable, reset_by_peer, reset_by_local,
    /// timeout and unknown. reset means both kinds of resets. The texts of -o short and of the table, such as 'reset by
    /// peer', are accepted, too.
    ///
    /// Example: kmesh-trace --outcome refused,connect_timeout
    #[arg(long, value_name = "OUTCOME", value_delimiter = ',', hide_possible_values = true)]
    #[arg(value_parser = OutcomeParser)]
    pub outcome: Vec<Term<OutcomeName>>,

    /// Match every outcome except ok
    ///
    /// Updates, the table and rollups include attempts to connect that have been waiting for an answer for longer than
    /// 1 s. --events close,update prints them, too.
    ///
    /// Example: kmesh-trace -n shop --failed
    #[arg(long)]
    pub failed: bool,

    /// Match attempts that wait for an answer
    ///
    /// Only updates show them, so this flag requires --events update, -o table, --rollup, --write or --metrics.
    ///
    /// Example: kmesh-trace --connecting --events update
    #[arg(long, conflicts_with_all = ["outcome", "failed", "established_only"])]
    pub connecting: bool,

    /// Skip attempts that never connected
    ///
    /// Example: kmesh-trace --established-only --failed
    #[arg(long)]
    pub established_only: bool,

    /// Skip connections that were shorter than TIME
    ///
    /// The duration of a connection that was open before the start counts from the start of tracing.
    ///
    /// Example: kmesh-trace --min-duration 100ms
    #[arg(long, value_name = "TIME", value_parser = min_duration, allow_hyphen_values = true)]
    pub min_duration: Option<Duration>,

    /// Skip connections with fewer bytes than SIZE
    ///
    /// The bytes of both directions are added. Units: k, M and G are powers of 1000; Ki, Mi and Gi are powers of 1024.
    ///
    /// Example: kmesh-trace --min-bytes 1M
    #[arg(long, value_name = "SIZE")]
    pub min_bytes: Option<Size>,
}

/// The filter flags as they are typed at the prompt of the live table.
#[derive(Clone, Debug, Parser)]
#[command(no_binary_name = true, disable_help_flag = true, mut_args = values::last_value_wins)]
pub struct PromptFilter {
    /// The filter flags of the command line.
    #[command(flatten)]
    pub filters: Filters,
}

fn min_duration(text: &str) -> Result<Duration, String> {
    values::time(text, "100ms, 2s or 1h")
}

/// A name that `--outcome` accepts, as the outcomes that it means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutcomeName(pub &'static [Outcome]);

/// The name that means both kinds of resets.
const RESET: (&str, &[Outcome]) = ("reset", &[Outcome::ResetByPeer, Outcome::ResetByLocal]);

/// Parses an outcome by its name in records, or by its text for people: `reset_by_peer` or `reset by peer`.
#[derive(Clone, Copy, Debug)]
struct OutcomeParser;

impl OutcomeParser {
    fn names() -> impl Iterator<Item = (&'static str, &'static [Outcome])> {
        let outcomes = Outcome::ALL.iter();
        let names = outcomes.map(|outcome| (outcome.name(), std::slice::from_ref(outcome)));
        names.chain([RESET])
    }
}

impl TypedValueParser for OutcomeParser {
    type Value = Term<OutcomeName>;

    fn parse_ref(&self, command: &Command, arg: Option<&Arg>, value: &OsStr) -> Result<Self::Value, Error> {
        let (negated, text) = split_negation(value);
        // A value that is not UTF-8 is refused below, because no name matches.
        let name = text.to_str().map(|text| text.replace([' ', '-'], "_").to_lowercase());
        let name = match name.as_deref() {
            Some("refused_by_peer") => OsStr::new("refused"),
            Some(name) => OsStr::new(name),
            None => text,
        };
        let possible = Self::names().map(|(name, _)| PossibleValue::new(name));
        let parser = PossibleValuesParser::new(possible).try_map(|name| {
            let found = Self::names().find(|(known, _)| *known == name);
            found.map(|(_, outcomes)| OutcomeName(outcomes)).ok_or("unknown name")
        });
        let value = parser.parse_ref(command, arg, name)?;
        Ok(Term { negated, value })
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(Self::names().map(|(name, _)| PossibleValue::new(name))))
    }
}

/// Splits off a leading `!`.
fn split_negation(value: &OsStr) -> (bool, &OsStr) {
    match value.to_str().and_then(|value| value.strip_prefix('!')) {
        Some(value) => (true, OsStr::new(value)),
        None => (false, value),
    }
}

/// Parses a term whose value is one of these, by its name. An error suggests the name that is most similar.
#[derive(Clone, Copy, Debug)]
struct NameParser<T: 'static>(&'static [T], fn(T) -> &'static str);

impl<T: Copy> NameParser<T> {
    fn names(self) -> impl Iterator<Item = PossibleValue> {
        self.0.iter().map(move |&value| PossibleValue::new(self.1(value)))
    }
}

impl<T: Copy + Send + Sync + 'static> TypedValueParser for NameParser<T> {
    type Value = Term<T>;

    fn parse_ref(&self, command: &Command, arg: Option<&Arg>, value: &OsStr) -> Result<Self::Value, Error> {
        // A value that is not UTF-8 is refused below, because no name matches.
        let (negated, name) = split_negation(value);
        let Self(values, name_of) = *self;
        let parser = PossibleValuesParser::new(self.names()).try_map(move |name| {
            let value = values.iter().find(|&&value| name_of(value) == name);
            value.copied().ok_or("unknown name")
        });
        let value = parser.parse_ref(command, arg, name)?;
        Ok(Term { negated, value })
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(self.names()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn min_duration_may_be_zero() {
        assert_eq!(min_duration("2"), Ok(Duration::from_secs(2)));
        assert_eq!(min_duration("0s"), Ok(Duration::ZERO));
        assert_eq!(min_duration("100ms"), Ok(Duration::from_millis(100)));
        for (text, part) in [
            ("", "write"),
            ("-1s", "write"),
            ("11years", "months and years"),
            ("3651d", "ten years"),
        ] {
            let error = min_duration(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
