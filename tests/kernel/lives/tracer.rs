//! The tracers that trace all lives, each with another filter.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::{TcpListener, TcpStream};

use super::failures::Failures;
use super::life::{PORTS_PER_LIFE, first_port};
use super::model::ExpectedRecord;
use super::world::{Side, World, life_networks};
use crate::support::bpf;
use crate::support::output::ReceivedRecord;
use crate::support::sock::IpVersion;
use crate::support::tracer::{Tracer, TracerCommand};

/// The server ports of half of the lives (25 lives, then 25 others, …), and the marker's.
const PORT_RANGES: [(u16, u16); 5] = [(1024, 2047), (2048, 2247), (2448, 2647), (2848, 3047), (3248, 3447)];
const MARKER_PORT: u16 = 1999;

/// A tracer with a filter, and the same filter in the test.
pub struct FilteredTracer {
    /// The flags of the filter, or an empty string.
    pub name: &'static str,
    pub tracer: Tracer,
    pub is_selected: fn(&ExpectedRecord) -> bool,
    /// Whether the tracer scans the open sockets, and so finds the processes that hold them.
    pub scans: bool,
    /// The records that lack something, each with its life.
    pub incomplete: RefCell<Vec<String>>,
    /// The expected records that did not come, each with its life. Only reused sockets can miss a record.
    pub missing: RefCell<Vec<String>>,
}

fn has_selected_port(expected: &ExpectedRecord) -> bool {
    let port = expected.dst.port();
    PORT_RANGES.iter().any(|(from, to)| (*from..=*to).contains(&port))
}

impl FilteredTracer {
    fn start(name: &'static str, args: &[&str], is_selected: fn(&ExpectedRecord) -> bool) -> Self {
        let networks = life_networks();
        let args = [&["-o", "json", "--ip", &networks, "--buffer", "16MiB"], args].concat();
        Self {
            name,
            tracer: TracerCommand::for_all_connections(&args).start(),
            is_selected,
            scans: name.contains("--events"),
            incomplete: RefCell::default(),
            missing: RefCell::default(),
        }
    }

    pub fn start_all() -> Vec<Self> {
        let ranges: Vec<String> = PORT_RANGES.iter().map(|(from, to)| format!("{from}-{to}")).collect();
        let events = ["--events", "open,update,close", "--interval", "100ms"];
        vec![
            Self::start("", &[], |_| true),
            Self::start("--direction inbound", &["--direction", "inbound"], |expected| {
                expected.direction == "inbound"
            }),
            Self::start("--port", &["--port", &ranges.join(",")], has_selected_port),
            Self::start("--events", &events, |_| true),
        ]
    }

    /// Starts to collect the records of both namespaces.
    pub fn watch(&self, world: &World) {
        for side in [Side::Near, Side::Far] {
            self.tracer.output.watch(world.netns(side));
        }
    }

    /// Returns the records of a batch, by the first port of each life. Records of no life have the key 0.
    pub fn records_by_life(&self, world: &World) -> BTreeMap<u16, Vec<(Side, ReceivedRecord)>> {
        let mut lives = BTreeMap::<u16, Vec<(Side, ReceivedRecord)>>::new();
        for side in [Side::Near, Side::Far] {
            for record in self.records_before_marker(world, side) {
                // The marker of an earlier batch.
                if record.value["dst"]["port"] == MARKER_PORT {
                    continue;
                }
                let port = |end: &str| u16::try_from(record.value[end]["port"].as_u64().unwrap_or_default()).ok();
                let block = ["src", "dst"].into_iter().filter_map(port).find_map(port_block);
                lives.entry(block.unwrap_or_default()).or_default().push((side, record));
            }
        }
        lives
    }

    /// Returns all records of a side so far. Makes a connection, the marker, and waits for its record, which is later
    /// than the records of all lives.
    fn records_before_marker(&self, world: &World, side: Side) -> Vec<ReceivedRecord> {
        let netns = world.netns(side);
        world.run_in(side, || {
            let address = IpVersion::V4.at(MARKER_PORT);
            let listener = TcpListener::bind(address).expect("the marker's listener");
            let client = TcpStream::connect(address).expect("the marker's connection");
            let port = client.local_addr().expect("the marker's address").port();
            drop((listener.accept().expect("accept the marker"), client));
            let is_marker = |record: &ReceivedRecord| {
                record.value["src"]["port"] == port
                    && record.value["dst"]["port"] == MARKER_PORT
                    && record.value["event"] == "close"
            };
            let found = self.tracer.output.wait(netns, |records| {
                // The filter may select only one of the marker's two records.
                let at = records.iter().position(is_marker)?;
                Some(records[..at].to_vec())
            });
            found.unwrap_or_else(|error| panic!("the marker has no record: {error}"))
        })
    }

    /// Stops the tracer. Fails if records lack something or are missing, and the tracer did not count as many lost
    /// events. `untraced`: the number of state changes at which the kernel ran no program.
    pub fn stop(self, untraced: u64, failures: &mut Failures) {
        let (incomplete, missing) = (self.incomplete.take(), self.missing.take());
        let skipped = bpf::skipped_runs(self.tracer.pid);
        let totals = self.tracer.interrupt().check();
        let counts = format!("program runs that the kernel skipped: {skipped:?}; {totals:?}");
        println!("[{}] {counts}", self.name);
        let is_explained = (incomplete.len() + missing.len()) as u64 <= skipped.values().sum();
        let missing_count = missing.len() as u64;
        let is_counted = (missing_count..=missing_count + untraced).contains(&totals.lost)
            && totals.lost_at_most == 0
            && totals.open <= untraced;
        if !is_explained || !is_counted {
            let kind = format!("incomplete and missing records [{}]", self.name);
            let failure = format!("{} incomplete, {} missing, {counts}", incomplete.len(), missing.len());
            let records = [incomplete, missing].concat();
            failures.add(kind, 0, || (failure, records.join("\n")));
        }
    }
}

/// Returns the first port of the life that this port belongs to.
pub fn port_block(port: u16) -> Option<u16> {
    let offset = port.checked_sub(first_port(0))?;
    (port < 40_000).then(|| first_port(0) + offset / PORTS_PER_LIFE * PORTS_PER_LIFE)
}
