//! The tool's JSON Schema. Every line that a test reads must conform to it.

use std::process::Command;
use std::sync::LazyLock;

use jsonschema::Validator;
use serde_json::Value;

static SCHEMA: LazyLock<Validator> = LazyLock::new(|| {
    let output = Command::new(super::tracer::binary())
        .arg("schema")
        .output()
        .expect("run kmesh-trace schema");
    assert!(
        output.status.success(),
        "kmesh-trace schema: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let schema: Value = serde_json::from_slice(&output.stdout).expect("kmesh-trace schema prints JSON");
    jsonschema::validator_for(&schema).expect("kmesh-trace schema prints a JSON Schema")
});

/// Runs the tool to load the schema, unless it is loaded. Before it executes the tool, the child process holds copies
/// of the test's sockets. So a test loads the schema before it makes traffic.
pub fn load() {
    LazyLock::force(&SCHEMA);
}

/// Validates a line, and returns all violations of the schema as text.
pub fn check(line: &Value) -> Result<(), String> {
    let errors: Vec<String> = SCHEMA
        .iter_errors(line)
        .map(|error| format!("{} at {}", error, error.instance_path()))
        .collect();
    if errors.is_empty() {
        Ok(())
    } else {
        Err(errors.join("; "))
    }
}
