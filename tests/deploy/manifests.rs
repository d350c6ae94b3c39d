//! The manifests, given to a real API server, and what the account may do then.

use std::path::{Path, PathBuf};

use crate::folder;
use crate::support::net;

/// The folder with the scripts that start one.
fn scripts() -> PathBuf {
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/k8s");
    std::env::var_os("K8S_DIR").map_or(shared, PathBuf::from)
}

/// Where they unpack it.
fn root() -> PathBuf {
    std::env::var_os("K8S_ROOT")
        .unwrap_or_else(|| "/tmp/k8s-root".into())
        .into()
}

/// Whether an API server can be started; unpacks it, since that may need the network.
pub fn missing() -> Result<(), String> {
    crate::support::probe::NAMESPACES.clone()?;
    let prepare = scripts().join("prepare.sh");
    if !prepare.exists() {
        return Err(format!(
            "no Kubernetes in {} (K8S_DIR names another folder)",
            scripts().display()
        ));
    }
    if root().join("bin/kubectl").exists() {
        return Ok(());
    }
    net::try_run(&prepare.to_string_lossy(), &[]).map(drop)
}

struct ApiServer {
    folder: PathBuf,
}

impl ApiServer {
    fn start() -> Self {
        let folder = PathBuf::from(format!("/tmp/kt-api-{}", std::process::id()));
        let up = scripts().join("apiserver-up.sh");
        let environment = ["CONTROLLERS=0", "ADMISSION_OFF=ServiceAccount"];
        net::run(
            "env",
            &[&environment[..], &[up.to_str().unwrap(), folder.to_str().unwrap()]].concat(),
        );
        Self { folder }
    }

    fn kubectl(&self, args: &[&str]) -> Result<String, String> {
        let kubeconfig = format!("--kubeconfig={}", self.folder.join("kubeconfig").display());
        let kubectl = root().join("bin/kubectl");
        net::try_run(&kubectl.to_string_lossy(), &[&[&*kubeconfig], args].concat())
    }

    fn apply(&self, file: &Path) {
        self.kubectl(&["apply", "--validate=true", "-f", file.to_str().unwrap()])
            .unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    }

    /// What the tracer's account may do: verb and resource.
    fn may(&self, verb: &str, resource: &str) -> bool {
        let account = "--as=system:serviceaccount:kmesh-trace:kmesh-trace";
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        let subresource = format!("--subresource={subresource}");
        // Who may not gets status 1.
        self.kubectl(&[
            "auth",
            "can-i",
            verb,
            resource,
            &subresource,
            account,
            "--all-namespaces",
        ])
        .is_ok_and(|told| told.trim().ends_with("yes"))
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        let down = scripts().join("apiserver-down.sh");
        net::try_run(down.to_str().unwrap(), &[self.folder.to_str().unwrap()]).unwrap_or_default();
        std::fs::remove_dir_all(&self.folder).unwrap_or_default();
    }
}

/// Every resource and verb that a role grants.
const CLUSTER: [(&str, &str); 14] = [
    ("list", "pods"),
    ("watch", "pods"),
    ("list", "services"),
    ("watch", "services"),
    ("list", "endpoints"),
    ("watch", "endpoints"),
    ("list", "nodes"),
    ("watch", "nodes"),
    ("list", "endpointslices.discovery.k8s.io"),
    ("watch", "endpointslices.discovery.k8s.io"),
    ("list", "replicasets.apps"),
    ("watch", "replicasets.apps"),
    ("list", "jobs.batch"),
    ("watch", "jobs.batch"),
];
/// What no role grants.
const NEVER: [(&str, &str); 8] = [
    ("get", "secrets"),
    ("list", "secrets"),
    ("create", "nodes/proxy"),
    ("create", "pods/exec"),
    ("delete", "pods"),
    ("get", "configmaps"),
    ("update", "nodes"),
    ("impersonate", "users"),
];

/// They are taken as they stand, and each role grants what it says and no more.
pub fn applied() {
    let api = ApiServer::start();
    let manifests = folder().join("kubernetes");
    let definition = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/podmonitor-crd.yaml");
    api.apply(&definition);
    api.kubectl(&[
        "wait",
        "--for=condition=Established",
        "--timeout=60s",
        "crd/podmonitors.monitoring.coreos.com",
    ])
    .unwrap();
    assert!(!api.may("get", "nodes/pods"));
    for file in ["rbac.yaml", "daemonset.yaml", "networkpolicy.yaml", "podmonitor.yaml"] {
        api.apply(&manifests.join(file));
    }
    assert!(api.may("get", "nodes/pods"));
    assert!(!api.may("get", "nodes/proxy"));
    assert!(CLUSTER.iter().all(|(verb, resource)| !api.may(verb, resource)));
    api.apply(&manifests.join("rbac-nodes-proxy.yaml"));
    assert!(api.may("get", "nodes/proxy"));
    assert!(CLUSTER.iter().all(|(verb, resource)| !api.may(verb, resource)));
    api.apply(&manifests.join("rbac-cluster.yaml"));
    for (verb, resource) in CLUSTER {
        assert!(api.may(verb, resource), "{verb} {resource}");
    }
    for (verb, resource) in NEVER {
        assert!(!api.may(verb, resource), "{verb} {resource}");
    }
    // What the server has made of it.
    let read = |path: &str| {
        let jsonpath = format!("jsonpath={{{path}}}");
        api.kubectl(&["-n", "kmesh-trace", "get", "daemonset", "kmesh-trace", "-o", &jsonpath])
            .unwrap()
    };
    let container = ".spec.template.spec.containers[0].securityContext";
    let cases = [
        (".spec.template.spec.hostPID".to_owned(), "true"),
        (".spec.template.spec.hostNetwork".to_owned(), ""),
        (format!("{container}.capabilities.drop"), r#"["ALL"]"#),
        (
            format!("{container}.capabilities.add"),
            r#"["BPF","PERFMON","SYS_PTRACE"]"#,
        ),
        (format!("{container}.readOnlyRootFilesystem"), "true"),
        (format!("{container}.allowPrivilegeEscalation"), "false"),
        (format!("{container}.privileged"), "false"),
    ];
    for (path, expected) in cases {
        assert_eq!(read(&path), expected, "{path}");
    }
}
