//! The Kubernetes components that tests start, where they are, and the scripts that start them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};

/// What the scripts call besides the components. `cargo xtask test` installs them as root.
const TOOLS: [(&str, &str); 2] = [("openssl", "version"), ("curl", "--version")];

/// Returns the folder with these programs: `K8S_BIN`, or the one that `../shared/k8s/prepare.sh` fills. The error says why
/// there is none, in one line.
pub fn find(programs: &[&str]) -> Result<PathBuf, String> {
    if !nix::unistd::geteuid().is_root() {
        return Err("needs root".to_owned());
    }
    for (tool, version) in TOOLS {
        let there = Command::new(tool).arg(version).output();
        there.map_err(|error| format!("{tool}: {error}"))?;
    }
    let folder = match std::env::var_os("K8S_BIN") {
        Some(folder) => PathBuf::from(folder),
        None => prepare(programs)?,
    };
    match lacking(&folder, programs) {
        Some(program) => Err(format!("no {program} in {}", folder.display())),
        None => Ok(folder),
    }
}

fn lacking<'a>(folder: &Path, programs: &[&'a str]) -> Option<&'a str> {
    programs.iter().copied().find(|program| !folder.join(program).exists())
}

/// Unpacks the components once.
fn prepare(programs: &[&str]) -> Result<PathBuf, String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/k8s/prepare.sh");
    if !script.exists() {
        return Err("no Kubernetes components: K8S_BIN names a folder with them".to_owned());
    }
    let root = std::env::var_os("K8S_ROOT").map_or_else(|| PathBuf::from("/tmp/k8s-root"), PathBuf::from);
    let folder = root.join("bin");
    // Two suites may look for them at the same time.
    let lock = fs::File::create(root.with_extension("lock")).map_err(|error| error.to_string())?;
    lock.lock().map_err(|error| error.to_string())?;
    if lacking(&folder, programs).is_some() {
        let last_line = |error: String| error.trim_end().lines().next_back().unwrap_or_default().to_owned();
        run(Command::new(script)).map_err(last_line)?;
    }
    Ok(folder)
}

/// Returns the command that runs a script of `tests/support/k8s` with the components in this folder.
pub fn script(name: &str, components: &Path) -> Command {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/support/k8s");
    let mut command = Command::new(folder.join(name));
    command.env("K8S_BIN", components);
    command
}

/// Runs a command. Returns what it prints; when it fails, that is in the error.
pub fn run(mut command: Command) -> Result<String, String> {
    // A process that a script leaves in the background would keep a pipe open, so this is a file.
    let path = temporary();
    let output = fs::File::create(&path).map_err(|error| error.to_string())?;
    let errors = output.try_clone().map_err(|error| error.to_string())?;
    let status = command.stdin(Stdio::null()).stdout(output).stderr(errors).status();
    let text = fs::read_to_string(&path).unwrap_or_default();
    _ = fs::remove_file(&path);
    match status {
        Ok(status) if status.success() => Ok(text),
        other => Err(format!("{command:?}: {other:?}: {text}")),
    }
}

/// Returns the path of a new temporary file.
fn temporary() -> PathBuf {
    static FILES: AtomicU32 = AtomicU32::new(0);
    let number = FILES.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("kmesh-trace-k8s-{}-{number}", std::process::id()))
}

/// A right of an account: a verb, and a resource as `kubectl auth can-i` takes it (`pods`, `replicasets.apps`, `nodes/proxy`).
pub type Right<'a> = (&'a str, &'a str);

/// A question to an API server whether a user has a right in all namespaces.
pub fn review(user: &str, groups: &[&str], (verb, resource): Right<'_>) -> Value {
    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    let (resource, group) = resource.split_once('.').unwrap_or((resource, ""));
    let attributes = json!({"verb": verb, "group": group, "resource": resource, "subresource": subresource});
    json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
        "spec": {"user": user, "groups": groups, "resourceAttributes": attributes},
    })
}

/// Puts these questions to the API server whose folder this is, and returns the answers. One process of curl asks them all:
/// kubectl takes a fifth of a second for each.
pub fn answers(api_server: &Path, questions: &[Value]) -> Result<Vec<bool>, String> {
    let kubeconfig = fs::read_to_string(api_server.join("kubeconfig")).map_err(|error| error.to_string())?;
    let (_, server) = kubeconfig
        .split_once("server: \"")
        .ok_or("no server in the kubeconfig")?;
    let (server, _) = server.split_once('"').ok_or("no end of the server's name")?;
    let pki = api_server.join("pki").display().to_string();
    let request = |question: &Value| {
        format!(
            "url = \"{server}/apis/authorization.k8s.io/v1/subjectaccessreviews\"\n\
             cacert = \"{pki}/ca.crt\"\ncert = \"{pki}/admin.crt\"\nkey = \"{pki}/admin.key\"\n\
             header = \"Content-Type: application/json\"\ndata = {:?}\nsilent\nshow-error\nfail\n",
            question.to_string()
        )
    };
    let path = temporary();
    let requests = questions.iter().map(request).collect::<Vec<_>>().join("next\n");
    fs::write(&path, requests).map_err(|error| error.to_string())?;
    let mut curl = Command::new("curl");
    curl.arg("--config").arg(&path);
    let text = run(curl);
    _ = fs::remove_file(path);
    let text = text?;
    let reviews = serde_json::Deserializer::from_str(&text).into_iter::<Value>();
    let answers: Option<Vec<_>> = reviews
        .map(|review| review.ok()?["status"]["allowed"].as_bool())
        .collect();
    answers
        .filter(|answers| answers.len() == questions.len())
        .ok_or_else(|| format!("{} questions: {text}", questions.len()))
}
