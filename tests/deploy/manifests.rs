//! The manifests in a real API server, and the rights that they grant.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::components::{self, Right};
use crate::folder;
use crate::support::sock::wait_until;

const PROGRAMS: &[&str] = &["etcd", "kube-apiserver", "kubectl"];

/// Checks that an API server can be started.
pub fn check_requirements() -> Result<(), String> {
    crate::support::probe::NAMESPACES.clone()?;
    components::find(PROGRAMS).map(drop)
}

struct ApiServer {
    components: PathBuf,
    folder: PathBuf,
}

impl ApiServer {
    fn start() -> Self {
        let server = Self {
            components: components::find(PROGRAMS).unwrap(),
            folder: PathBuf::from(format!("/tmp/kt-api-{}", std::process::id())),
        };
        let mut up = components::script("apiserver-up.sh", &server.components);
        up.arg(&server.folder)
            .env("CONTROLLERS", "0")
            .env("ADMISSION_OFF", "ServiceAccount");
        components::run(up).unwrap();
        server
    }

    /// Runs kubectl as the administrator of this server.
    fn kubectl(&self, args: &[&str]) -> Result<String, String> {
        let mut kubectl = Command::new(self.components.join("kubectl"));
        kubectl
            .arg("--kubeconfig")
            .arg(self.folder.join("kubeconfig"))
            .arg("--cache-dir")
            .arg(self.folder.join("cache"))
            .args(args);
        components::run(kubectl)
    }

    fn apply(&self, file: &Path) {
        self.kubectl(&["apply", "--validate=true", "-f", file.to_str().unwrap()])
            .unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    }

    /// Waits until the tracer's account has the rights `granted`, and checks that it has none of `denied`. The server
    /// applies a new role with a delay.
    fn wait_for_rights(&self, granted: &[Right<'_>], denied: &[Right<'_>]) {
        let account = "system:serviceaccount:kmesh-trace:kmesh-trace";
        let groups = [
            "system:serviceaccounts",
            "system:serviceaccounts:kmesh-trace",
            "system:authenticated",
        ];
        let rights = [granted, denied].concat();
        let mut has = Vec::new();
        let reviews: Vec<_> = rights
            .iter()
            .map(|right| components::review(account, &groups, *right))
            .collect();
        wait_until(&format!("{granted:?} are granted"), || {
            has = components::are_allowed(&self.folder, &reviews).unwrap();
            has[..granted.len()].iter().all(|granted| *granted)
        });
        let excess: Vec<_> = rights
            .iter()
            .zip(&has)
            .skip(granted.len())
            .filter(|(_, has)| **has)
            .collect();
        assert!(excess.is_empty(), "{excess:?}");
    }

    /// Waits until the users of `kmesh-trace nodes` have their rights, and checks that they have no others.
    fn wait_for_rights_of_nodes(&self) {
        let groups = ["kmesh-trace-users", "system:authenticated"];
        let review = |namespace: &str, right| components::review_in(namespace, "alice", &groups, right);
        let in_namespace = NODES.map(|right| review("kmesh-trace", right));
        let in_cluster = CLUSTER.map(|right| review("", right));
        let granted = [&in_namespace[..], &in_cluster[..]].concat();
        wait_until("the rights of nodes are granted", || {
            let has = components::are_allowed(&self.folder, &granted).unwrap();
            has.into_iter().all(|granted| granted)
        });
        let changes = [
            ("update", "pods"),
            ("patch", "pods"),
            ("create", "secrets"),
            ("get", "secrets"),
        ];
        let elsewhere = NODES.iter().filter(|right| **right != ("list", "pods"));
        let denied: Vec<_> = elsewhere
            .map(|right| review("default", *right))
            .chain(changes.map(|right| review("kmesh-trace", right)))
            .collect();
        let has = components::are_allowed(&self.folder, &denied).unwrap();
        assert!(has.iter().all(|has| !has), "{denied:?}: {has:?}");
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        let mut down = components::script("apiserver-down.sh", &self.components);
        down.arg(&self.folder);
        components::run(down).unwrap_or_default();
        std::fs::remove_dir_all(&self.folder).unwrap_or_default();
    }
}

/// The rights that `rbac-cluster.yaml` grants.
const CLUSTER: [Right<'_>; 14] = [
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
/// The rights that `rbac-nodes.yaml` grants in the namespace of the pods.
const NODES: [Right<'_>; 6] = [
    ("create", "pods"),
    ("get", "pods"),
    ("list", "pods"),
    ("delete", "pods"),
    ("get", "pods/exec"),
    ("create", "pods/exec"),
];
/// Rights that the tracer's account never has.
const NEVER: [Right<'_>; 8] = [
    ("get", "secrets"),
    ("list", "secrets"),
    ("create", "nodes/proxy"),
    ("create", "pods/exec"),
    ("delete", "pods"),
    ("get", "configmaps"),
    ("update", "nodes"),
    ("impersonate", "users"),
];

/// The server accepts all manifests, and each role grants exactly the documented rights.
pub fn grant_exactly_the_documented_rights() {
    let api = ApiServer::start();
    let manifests = folder().join("kubernetes");
    let definition = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/podmonitor-crd.yaml");
    api.apply(&definition);
    api.kubectl(&[
        "wait",
        "--for=condition=Established",
        "--timeout=120s",
        "crd/podmonitors.monitoring.coreos.com",
    ])
    .unwrap();
    let denied = |more: &[Right<'static>]| [&NEVER[..], more].concat();
    let (pods, proxy) = (("get", "nodes/pods"), ("get", "nodes/proxy"));
    api.wait_for_rights(&[], &denied(&[&[pods, proxy], &CLUSTER[..]].concat()));
    for file in ["rbac.yaml", "daemonset.yaml", "networkpolicy.yaml", "podmonitor.yaml"] {
        api.apply(&manifests.join(file));
    }
    api.wait_for_rights(&[pods], &denied(&[&[proxy], &CLUSTER[..]].concat()));
    api.apply(&manifests.join("rbac-nodes-proxy.yaml"));
    api.wait_for_rights(&[pods, proxy], &denied(&CLUSTER));
    api.apply(&manifests.join("rbac-cluster.yaml"));
    api.wait_for_rights(&[&[pods, proxy], &CLUSTER[..]].concat(), &denied(&[]));
    api.apply(&manifests.join("rbac-nodes.yaml"));
    api.wait_for_rights_of_nodes();
    // The DaemonSet after defaulting.
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
