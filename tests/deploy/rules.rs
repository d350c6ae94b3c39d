//! The rules, through promtool.

use crate::folder;
use crate::support::net;

fn promtool(command: &[&str], file: &str) {
    let path = folder().join("prometheus").join(file);
    net::run("promtool", &[command, &[path.to_str().unwrap()]].concat());
}

/// They are rules.
pub fn are_valid() {
    promtool(&["check", "rules"], "rules.yaml");
}

/// Given series, they compute and alert as their tests say.
pub fn do_what_they_say() {
    promtool(&["test", "rules"], "rules-test.yaml");
}
