//! The recording and alerting rules in promtool.

use crate::folder;
use crate::support::net;

fn promtool(command: &[&str], file: &str) {
    let path = folder().join("prometheus").join(file);
    net::run("promtool", &[command, &[path.to_str().unwrap()]].concat());
}

pub fn are_valid() {
    promtool(&["check", "rules"], "rules.yaml");
}

/// Runs the unit tests in `rules-test.yaml`.
pub fn pass_their_tests() {
    promtool(&["test", "rules"], "rules-test.yaml");
}
