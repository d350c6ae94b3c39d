//! The records of one network namespace, as a scenario compares them with what it expects.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fmt::Write as _;
use std::net::TcpListener;

use serde_json::Value;

use super::expect::{Expected, is_address};
use super::net;
use super::output::{ReceivedRecord, TracerOutput};
use super::sock::{IpVersion, Pair, pair_with};

/// A tracer's records of the namespace of one scenario.
pub struct RecordView<'a> {
    output: &'a TracerOutput,
    netns: u64,
    /// The indexes of the records that earlier calls have compared.
    compared: RefCell<HashSet<usize>>,
}

impl<'a> RecordView<'a> {
    /// Views the records of the calling thread's namespace from now on.
    pub fn new(output: &'a TracerOutput) -> Self {
        let netns = net::current_netns();
        output.watch(netns);
        Self {
            output,
            netns,
            compared: RefCell::default(),
        }
    }

    /// Views the records of a new namespace. The kernel may have given it the number of a namespace that is gone, whose
    /// last records may still come. They are ignored.
    pub fn of_new_namespace(output: &'a TracerOutput) -> Self {
        let view = Self::new(output);
        {
            let mut compared = view.compared.borrow_mut();
            let marker = view.mark(&mut compared);
            compared.extend(0..=marker);
        }
        view
    }

    pub fn netns(&self) -> u64 {
        self.netns
    }

    /// Waits for exactly these records, in any order, and no others. Returns them in the order of `expected`.
    pub fn expect(&self, expected: &[Expected]) -> Vec<Value> {
        let mut compared = self.compared.borrow_mut();
        let found = self.find(expected, &mut compared);
        let marker = self.mark(&mut compared);
        let records = self.output.records(self.netns);
        let mut report = differences(expected, &found, &records);
        for (at, record) in records.iter().enumerate().take(marker) {
            if !compared.contains(&at) {
                let _ = writeln!(report, "unexpected record: {}", record.value);
            }
        }
        compared.extend(0..marker);
        assert!(report.is_empty(), "{report}");
        found.into_iter().map(|at| records[at].value.clone()).collect()
    }

    /// Waits for these records, in any order, among others.
    pub fn expect_among_others(&self, expected: &[Expected]) {
        let found = self.find(expected, &mut self.compared.borrow_mut());
        let report = differences(expected, &found, &self.output.records(self.netns));
        assert!(report.is_empty(), "{report}");
    }

    /// Checks that no record comes.
    pub fn expect_nothing(&self) {
        self.expect(&[]);
    }

    /// Closes both ends of a connection, the client first, and expects a record for each end with this payload.
    pub fn expect_clean_close(&self, pair: Pair, up: u64, down: u64) -> Vec<Value> {
        let truth = pair.close_client_first();
        self.expect(&[
            truth.outbound().bytes(up, down).ok("local"),
            truth.inbound().bytes(down, up).ok("peer"),
        ])
    }

    /// Waits for the expected records and returns their indexes.
    fn find(&self, expected: &[Expected], compared: &mut HashSet<usize>) -> Vec<usize> {
        let found = self
            .output
            .wait(self.netns, |records| assign(expected, records, compared));
        let found = found.unwrap_or_else(|why| self.panic_missing(&why, expected, compared));
        compared.extend(&found);
        found
    }

    /// Waits until this number of records has come that no earlier call has compared, and returns all of them.
    pub fn wait_count(&self, count: usize) -> Vec<ReceivedRecord> {
        let compared = self.compared.borrow();
        let enough = |records: &[ReceivedRecord]| {
            let is_new = |at: &usize| !compared.contains(at);
            let new: Vec<usize> = (0..records.len()).filter(is_new).collect();
            (new.len() >= count).then(|| new.into_iter().map(|at| records[at].clone()).collect())
        };
        self.output
            .wait(self.netns, enough)
            .unwrap_or_else(|why| panic!("{count} records: {why}"))
    }

    /// Makes a marker connection and waits for its records. Records are printed in the order of time: once the marker's
    /// records have come, all earlier records have come, too. So a test knows that no more records come, without a
    /// sleep.
    fn mark(&self, compared: &mut HashSet<usize>) -> usize {
        let listener = TcpListener::bind(IpVersion::V4.at(0)).expect("the marker's listener");
        let pair = pair_with(&listener);
        let dst = pair.truth.dst;
        drop((pair.server, pair.client));
        let both = self.output.wait(self.netns, |records| {
            let is_end = |at: &usize| !compared.contains(at) && is_address(&records[*at].value["dst"], dst);
            let ends: Vec<usize> = (0..records.len()).filter(is_end).collect();
            (ends.len() == 2).then_some(ends)
        });
        let both = both.unwrap_or_else(|why| panic!("the marker's records did not come: {why}"));
        compared.extend(&both);
        both[0].max(both[1])
    }

    fn panic_missing(&self, why: &str, expected: &[Expected], compared: &HashSet<usize>) -> ! {
        let mut report = format!("records are missing: {why}. Expected:\n");
        for end in expected {
            let _ = writeln!(
                report,
                "    {} {} → {} {}",
                end.direction, end.src, end.dst, end.outcome
            );
        }
        report.push_str("Received:\n");
        for (at, record) in self.output.records(self.netns).iter().enumerate() {
            if !compared.contains(&at) {
                let _ = writeln!(report, "    {}", record.value);
            }
        }
        panic!("{report}");
    }
}

impl Drop for RecordView<'_> {
    fn drop(&mut self) {
        self.output.unwatch(self.netns);
    }
}

/// Describes what is wrong with the records at the indexes `found`.
fn differences(expected: &[Expected], found: &[usize], records: &[ReceivedRecord]) -> String {
    let mut report = String::new();
    for (expected, &at) in expected.iter().zip(found) {
        let differences = expected.differences(&records[at]);
        if !differences.is_empty() {
            let _ = writeln!(report, "{} of {} → {}:", expected.direction, expected.src, expected.dst);
            for difference in differences {
                let _ = writeln!(report, "    {difference}");
            }
            let _ = writeln!(report, "    {}", records[at].value);
        }
    }
    report
}

/// Returns the index of the record of each expected end. If several records have the same addresses, they are assigned
/// in the order of time.
fn assign(expected: &[Expected], records: &[ReceivedRecord], compared: &HashSet<usize>) -> Option<Vec<usize>> {
    let mut taken = compared.clone();
    expected
        .iter()
        .map(|expected| {
            let is_it = |at: &usize| !taken.contains(at) && expected.is_same_end(&records[*at].value);
            let at = (0..records.len()).find(is_it)?;
            taken.insert(at);
            Some(at)
        })
        .collect()
}
