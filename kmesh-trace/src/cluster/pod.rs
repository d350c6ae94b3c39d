//! The pod that traces a node. What it may do is read from the manifest in `deploy/`, so that both are the same.

use std::env;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use crate::cli::PullPolicy;

/// The manifest of `deploy/`. It is in the program, so that the program needs no file.
const DAEMON_SET: &str = include_str!("../../../deploy/kubernetes/daemonset.yaml");

/// The label of every pod of `nodes`, and its value.
pub const LABEL: (&str, &str) = ("app.kubernetes.io/name", "kmesh-trace-nodes");
/// The label of the pods of one run.
const RUN_LABEL: &str = "kmesh-trace/run";
/// The annotation with the user who started the run.
const STARTED_BY: &str = "kmesh-trace/started-by";
/// The name of the container.
const CONTAINER: &str = "kmesh-trace";

/// The program in an image of `cargo xtask dist`.
const IN_IMAGE: &str = "/kmesh-trace";
/// The folder of a copied program, and the program.
const COPY_FOLDER: &str = "/run/kmesh-trace";
const COPIED: &str = "/run/kmesh-trace/kmesh-trace";

/// What the pods of one run have in common.
#[derive(Clone, Debug)]
pub struct PodSettings {
    /// Distinguishes the pods of this run.
    pub run: String,
    pub image: String,
    pub pull_policy: Option<PullPolicy>,
    /// Whether the program is copied into the pod.
    pub copy_binary: bool,
    /// The time after which the cluster ends the pod.
    pub deadline: Duration,
}

impl PodSettings {
    /// Returns the path of the program in the pod.
    pub fn program(&self) -> &'static str {
        if self.copy_binary { COPIED } else { IN_IMAGE }
    }

    /// Returns the command that receives a program of this size. It is complete before it gets its name.
    pub fn receive_command(&self, size: u64) -> Vec<String> {
        let script = format!("head -c {size} > {COPIED}.part && chmod 755 {COPIED}.part && mv {COPIED}.part {COPIED}");
        ["sh", "-c", &script].map(str::to_owned).into()
    }

    /// Returns the name of the pod with this number.
    pub fn name(&self, number: usize) -> String {
        format!("kmesh-trace-{}-{number}", self.run)
    }

    /// Returns the pod with this number, on this node.
    pub fn pod(&self, number: usize, node: &str) -> Result<Value> {
        let template: Value = serde_saphyr::from_str(DAEMON_SET).context("the manifest in the program is invalid")?;
        let template = &template["spec"]["template"]["spec"];
        let in_template = &template["containers"][0];
        // The process that waits uses no memory. Without a value, the request would be as large as the limit.
        let resources = json!({"limits": in_template["resources"]["limits"], "requests": {"cpu": 0, "memory": 0}});
        let mut container = json!({
            "name": CONTAINER,
            "image": self.image,
            "command": self.main_command(),
            "securityContext": in_template["securityContext"],
            "env": node_name(in_template),
            "resources": resources,
            "volumeMounts": in_template["volumeMounts"],
        });
        if let Some(policy) = self.pull_policy {
            container["imagePullPolicy"] = policy.name().into();
        }
        let mut spec = json!({
            "nodeName": node,
            "hostPID": template["hostPID"],
            "hostNetwork": template["hostNetwork"],
            "tolerations": template["tolerations"],
            "volumes": template["volumes"],
            "restartPolicy": "Never",
            "activeDeadlineSeconds": self.deadline.as_secs().max(1),
            "terminationGracePeriodSeconds": 1,
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
        });
        if self.copy_binary {
            let volume = json!({"name": "program", "emptyDir": {"medium": "Memory"}});
            push(&mut spec["volumes"], volume);
            push(
                &mut container["volumeMounts"],
                json!({"name": "program", "mountPath": COPY_FOLDER}),
            );
        }
        spec["containers"] = json!([container]);
        let labels = Map::from_iter([
            (LABEL.0.to_owned(), LABEL.1.into()),
            (RUN_LABEL.to_owned(), self.run.as_str().into()),
        ]);
        Ok(json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": self.name(number), "labels": labels, "annotations": {STARTED_BY: started_by()}},
            "spec": spec,
        }))
    }

    /// Returns the command of the pod's main process, which waits. A shell waits for the copy of the program first.
    fn main_command(&self) -> Value {
        match self.copy_binary {
            false => json!([IN_IMAGE, "node-wait"]),
            true => {
                let script = format!("until [ -x {COPIED} ]; do sleep 1; done; exec {COPIED} node-wait");
                json!(["sh", "-c", script])
            }
        }
    }
}

/// Returns the environment variable with the node's name, which the pod does not know otherwise.
fn node_name(container: &Value) -> Value {
    let variables = container["env"].as_array();
    let is_wanted = |variable: &&Value| variable["name"] == "NODE_NAME";
    variables.into_iter().flatten().filter(is_wanted).cloned().collect()
}

fn push(list: &mut Value, value: Value) {
    if let Some(list) = list.as_array_mut() {
        list.push(value);
    }
}

/// Returns the user who starts the run, by the environment.
fn started_by() -> String {
    let variable = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
    let names = ["SUDO_USER", "USER", "LOGNAME"];
    names
        .into_iter()
        .find_map(variable)
        .unwrap_or_else(|| "unknown".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> PodSettings {
        PodSettings {
            run: "r".to_owned(),
            image: "kmesh-trace:0.1.0".to_owned(),
            pull_policy: None,
            copy_binary: false,
            deadline: Duration::from_secs(90),
        }
    }

    #[test]
    fn pod_has_the_privileges_of_the_daemon_set_and_no_others() {
        let pod = settings().pod(3, "worker-1").unwrap();
        let (spec, container) = (&pod["spec"], &pod["spec"]["containers"][0]);
        assert_eq!(pod["metadata"]["name"], "kmesh-trace-r-3");
        assert_eq!(spec["nodeName"], "worker-1");
        assert_eq!(spec["hostPID"], true);
        assert_eq!(spec["hostNetwork"], false);
        assert_eq!(spec["automountServiceAccountToken"], false);
        assert_eq!(spec["activeDeadlineSeconds"], 90);
        assert_eq!(spec["tolerations"], json!([{"operator": "Exists"}]));
        assert_eq!(
            spec["volumes"],
            json!([{"name": "cgroup", "hostPath": {"path": "/sys/fs/cgroup", "type": "Directory"}}])
        );
        assert_eq!(
            container["volumeMounts"],
            json!([{"name": "cgroup", "mountPath": "/sys/fs/cgroup", "readOnly": true}])
        );
        assert_eq!(
            container["env"],
            json!([{"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}])
        );
        let context = &container["securityContext"];
        assert_eq!(context["readOnlyRootFilesystem"], true);
        assert_eq!(context["privileged"], false);
        let capabilities = json!({"drop": ["ALL"], "add": ["BPF", "PERFMON", "SYS_PTRACE"]});
        assert_eq!(context["capabilities"], capabilities);
        assert_eq!(container["command"], json!(["/kmesh-trace", "node-wait"]));
        assert_eq!(container.get("imagePullPolicy"), None);
    }

    #[test]
    fn copied_program_is_in_memory() {
        let settings = PodSettings {
            copy_binary: true,
            pull_policy: Some(PullPolicy::Never),
            ..settings()
        };
        let pod = settings.pod(0, "worker-1").unwrap();
        let container = &pod["spec"]["containers"][0];
        assert_eq!(
            pod["spec"]["volumes"][1],
            json!({"name": "program", "emptyDir": {"medium": "Memory"}})
        );
        assert_eq!(container["volumeMounts"][1]["mountPath"], "/run/kmesh-trace");
        assert_eq!(container["imagePullPolicy"], "Never");
        assert_eq!(settings.program(), "/run/kmesh-trace/kmesh-trace");
        assert!(settings.receive_command(7)[2].starts_with("head -c 7 > /run/kmesh-trace/"));
    }
}
