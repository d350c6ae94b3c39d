//! The Kubernetes components that tests start, where they are, and the scripts that start them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};

/// The tools that the scripts call besides the components. `cargo xtask test` installs them as root.
const TOOLS: [(&str, &str); 2] = [("openssl", "version"), ("curl", "--version")];

/// Returns the folder with these programs: `K8S_BIN`, or the one that `../shared/k8s/prepare.sh` fills. The error says
/// why there is none, in one line.
pub fn find(programs: &[&str]) -> Result<PathBuf, String> {
    if !nix::unistd::geteuid().is_root() {
        return Err("needs root".to_owned());
    }
    for (tool, version) in TOOLS {
        let output = Command::new(tool).arg(version).output();
        output.map_err(|error| format!("{tool}: {error}"))?;
    }
    let folder = match std::env::var_os("K8S_BIN") {
        Some(folder) => PathBuf::from(folder),
        None => prepare(programs)?,
    };
    match find_missing(&folder, programs) {
        Some(program) => Err(format!("no {program} in {}", folder.display())),
        None => Ok(folder),
    }
}

fn find_missing<'a>(folder: &Path, programs: &[&'a str]) -> Option<&'a str> {
    programs.iter().copied().find(|program| !folder.join(program).exists())
}

/// Unpacks the components unless an earlier run has.
fn prepare(programs: &[&str]) -> Result<PathBuf, String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/k8s/prepare.sh");
    if !script.exists() {
        return Err("no Kubernetes components: K8S_BIN names a folder with them".to_owned());
    }
    let root = std::env::var_os("K8S_ROOT").map_or_else(|| PathBuf::from("/tmp/k8s-root"), PathBuf::from);
    let folder = root.join("bin");
    // Two suites may do this at the same time.
    let lock = fs::File::create(root.with_extension("lock")).map_err(|error| error.to_string())?;
    lock.lock().map_err(|error| error.to_string())?;
    if find_missing(&folder, programs).is_some() {
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

/// Runs a command. Returns its output, or an error with its output.
pub fn run(mut command: Command) -> Result<String, String> {
    // Not a pipe, which a background process of the script would keep open.
    let path = temporary_path();
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
fn temporary_path() -> PathBuf {
    static FILES: AtomicU32 = AtomicU32::new(0);
    let number = FILES.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("kmesh-trace-k8s-{}-{number}", std::process::id()))
}

/// A right of an account: a verb, and a resource as `kubectl auth can-i` takes it (`pods`, `replicasets.apps`,
/// `nodes/proxy`).
pub type Right<'a> = (&'a str, &'a str);

/// Returns a SubjectAccessReview of whether a user has a right in all namespaces.
pub fn review(user: &str, groups: &[&str], right: Right<'_>) -> Value {
    review_in("", user, groups, right)
}

/// Returns a SubjectAccessReview of whether a user has a right in this namespace.
pub fn review_in(namespace: &str, user: &str, groups: &[&str], (verb, resource): Right<'_>) -> Value {
    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    let (resource, group) = resource.split_once('.').unwrap_or((resource, ""));
    let attributes = json!({
        "namespace": namespace, "verb": verb, "group": group, "resource": resource, "subresource": subresource,
    });
    json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
        "spec": {"user": user, "groups": groups, "resourceAttributes": attributes},
    })
}

/// Sends these reviews to the API server of this folder, and returns whether each is allowed. One curl process sends
/// all of them: kubectl takes a fifth of a second for each.
pub fn are_allowed(api_server: &Path, reviews: &[Value]) -> Result<Vec<bool>, String> {
    let kubeconfig = fs::read_to_string(api_server.join("kubeconfig")).map_err(|error| error.to_string())?;
    let (_, server) = kubeconfig
        .split_once("server: \"")
        .ok_or("no server in the kubeconfig")?;
    let (server, _) = server.split_once('"').ok_or("no closing quote after the server")?;
    let pki = api_server.join("pki").display().to_string();
    let request = |review: &Value| {
        format!(
            "url = \"{server}/apis/authorization.k8s.io/v1/subjectaccessreviews\"\n\
             cacert = \"{pki}/ca.crt\"\ncert = \"{pki}/admin.crt\"\nkey = \"{pki}/admin.key\"\n\
             header = \"Content-Type: application/json\"\ndata = {:?}\nsilent\nshow-error\nfail\n",
            review.to_string()
        )
    };
    let path = temporary_path();
    let requests = reviews.iter().map(request).collect::<Vec<_>>().join("next\n");
    fs::write(&path, requests).map_err(|error| error.to_string())?;
    let mut curl = Command::new("curl");
    curl.arg("--config").arg(&path);
    let text = run(curl);
    _ = fs::remove_file(path);
    let text = text?;
    let responses = serde_json::Deserializer::from_str(&text).into_iter::<Value>();
    let allowed: Option<Vec<_>> = responses
        .map(|review| review.ok()?["status"]["allowed"].as_bool())
        .collect();
    allowed
        .filter(|allowed| allowed.len() == reviews.len())
        .ok_or_else(|| format!("{} reviews: {text}", reviews.len()))
}
