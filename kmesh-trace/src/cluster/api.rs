//! The requests that `nodes` sends to the API server.

use http::{Method, StatusCode};
use hyper::body::Bytes;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::config::ApiServer;
use crate::names::objects::object_list::ApiStatus;
use crate::names::sources::apiserver::query_escaped;
use crate::names::sources::error::{SourceError, status_name};
use crate::names::sources::http_client::{Call, Connection, HttpClient};
use crate::names::sources::kubeconfig;
use crate::output::sanitize::one_line;

/// The objects of one page.
const PAGE: u32 = 500;
/// The largest answer, in bytes. A page of nodes has about 10 kB for each node.
const MAX_ANSWER: usize = 64 << 20;
/// The grace period of a pod that is deleted, in seconds. Its process ends at once.
pub const GRACE_SECONDS: u32 = 1;

/// A permission that `nodes` needs. Without namespace, it is for the whole cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Right {
    pub verb: &'static str,
    pub resource: &'static str,
    pub subresource: &'static str,
    pub is_namespaced: bool,
}

const fn right(verb: &'static str, resource: &'static str, subresource: &'static str) -> Right {
    Right {
        verb,
        resource,
        subresource,
        is_namespaced: true,
    }
}

const LIST_NODES: Right = Right {
    is_namespaced: false,
    ..right("list", "nodes", "")
};
const CREATE_PODS: Right = right("create", "pods", "");
const GET_PODS: Right = right("get", "pods", "");
const LIST_PODS: Right = right("list", "pods", "");
const DELETE_PODS: Right = right("delete", "pods", "");
/// An exec over a WebSocket is a GET, so that older servers ask for `get`. Newer ones ask for `create`.
const GET_EXEC: Right = right("get", "pods", "exec");
const CREATE_EXEC: Right = right("create", "pods", "exec");

/// The permissions that a run needs, names excluded.
pub const RIGHTS: [Right; 7] = [
    LIST_NODES,
    CREATE_PODS,
    GET_PODS,
    LIST_PODS,
    DELETE_PODS,
    GET_EXEC,
    CREATE_EXEC,
];

impl Right {
    /// Returns the permission as messages name it: `create pods/exec in namespace tools`.
    pub fn text(&self, namespace: &str) -> String {
        let Self { verb, resource, .. } = self;
        let subresource = match self.subresource {
            "" => String::new(),
            name => format!("/{name}"),
        };
        match self.is_namespaced {
            true => format!("{verb} {resource}{subresource} in namespace {namespace}"),
            false => format!("{verb} {resource}{subresource} in the whole cluster"),
        }
    }
}

/// A node of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    pub name: String,
    /// The architecture, as Go names it: `amd64`, `arm64`.
    pub architecture: String,
    pub operating_system: String,
}

/// A pod of `nodes`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodState {
    pub name: String,
    pub phase: Phase,
    /// Whether the kubelet has not answered yet, so that no container exists.
    pub is_new: bool,
    /// Why the pod or its container waits or has ended.
    pub reason: String,
}

/// The phase of a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// The container has not started yet.
    #[default]
    Waiting,
    /// The container cannot start as long as nobody changes something, such as a missing image.
    Stuck,
    Running,
    Ended,
}

/// The API server, and the namespace of the pods.
pub struct Api {
    pub client: HttpClient,
    pub namespace: String,
}

impl Api {
    /// Returns the API server that the flags name. The pods are in `namespace`, else in the namespace of the context.
    pub fn new(api_server: &ApiServer, namespace: Option<&str>) -> Result<Self, SourceError> {
        let (client, of_context) = kubeconfig::client_and_namespace(api_server)?;
        let namespace = namespace.map_or(of_context, str::to_owned);
        Ok(Self { client, namespace })
    }

    /// Returns the permissions of [`RIGHTS`] that the user lacks. A server that does not answer the question grants
    /// everything: the request that needs a permission will say that it is missing.
    pub async fn missing_rights(&self) -> Vec<Right> {
        let mut connection = None;
        let mut missing = Vec::new();
        for right in RIGHTS {
            if !self.has(&mut connection, &right).await.unwrap_or(true) {
                missing.push(right);
            }
        }
        missing
    }

    async fn has(&self, connection: &mut Option<Connection>, right: &Right) -> Result<bool, SourceError> {
        #[derive(Deserialize)]
        struct Review {
            status: ReviewStatus,
        }
        #[derive(Deserialize)]
        struct ReviewStatus {
            allowed: bool,
        }
        let namespace = if right.is_namespaced { &*self.namespace } else { "" };
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {
                "namespace": namespace, "verb": right.verb, "resource": right.resource, "subresource": right.subresource,
            }},
        });
        let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
        let refused = |status, body: &str| refused("create", "selfsubjectaccessreviews", status, body);
        let review: Review = self
            .send(connection, Method::POST, path, Some(&review), refused)
            .await?;
        Ok(review.status.allowed)
    }

    /// Lists the nodes with these labels.
    pub async fn nodes(&self, selector: Option<&str>) -> Result<Vec<Node>, SourceError> {
        let path = "/api/v1/nodes";
        let items = self.list(path, selector.unwrap_or_default(), &LIST_NODES).await?;
        Ok(items.iter().map(node).collect())
    }

    /// Lists the pods with these labels in the namespace of the pods.
    pub async fn pods(&self, selector: &str) -> Result<Vec<PodState>, SourceError> {
        let items = self.list(&self.pods_path(), selector, &LIST_PODS).await?;
        Ok(items.iter().map(pod_state).collect())
    }

    pub async fn create(&self, pod: &Value) -> Result<(), SourceError> {
        let refused = |status, body: &str| refused_pod(&self.namespace, status, body);
        let path = self.pods_path();
        let _: Value = self.send(&mut None, Method::POST, &path, Some(pod), refused).await?;
        Ok(())
    }

    /// Returns the pod, or `None` if it does not exist.
    pub async fn pod(&self, connection: &mut Option<Connection>, name: &str) -> Result<Option<PodState>, SourceError> {
        let path = format!("{}/{name}", self.pods_path());
        let answer = self.send(connection, Method::GET, &path, None, self.refusing(&GET_PODS));
        found(answer.await.map(|pod: Value| pod_state(&pod)))
    }

    /// Deletes the pod. Returns whether it existed. With 0, the API server does not wait until the kubelet has ended
    /// the pod.
    pub async fn delete(&self, name: &str, grace_seconds: u32) -> Result<bool, SourceError> {
        let path = format!("{}/{name}?gracePeriodSeconds={grace_seconds}", self.pods_path());
        let refused = self.refusing(&DELETE_PODS);
        let answer = self.send(&mut None, Method::DELETE, &path, None, refused).await;
        found(answer.map(|_: Value| ())).map(|found| found.is_some())
    }

    /// Returns the path that runs `command` in the pod.
    pub fn exec_path(&self, pod: &str, command: &[String]) -> String {
        let mut path = format!("{}/{pod}/exec?stdin=true&stdout=true&stderr=true", self.pods_path());
        for argument in command {
            path += &format!("&command={}", query_escaped(argument));
        }
        path
    }

    /// Returns how a refused exec is reported.
    pub fn refused_exec(&self, status: StatusCode, body: &str) -> SourceError {
        self.refusing(&CREATE_EXEC)(status, body)
    }

    fn pods_path(&self) -> String {
        format!("/api/v1/namespaces/{}/pods", query_escaped(&self.namespace))
    }

    /// Lists the objects of a path, page by page.
    async fn list(&self, path: &str, selector: &str, right: &Right) -> Result<Vec<Value>, SourceError> {
        #[derive(Deserialize)]
        struct Page {
            items: Option<Vec<Value>>,
            #[serde(default)]
            metadata: PageMeta,
        }
        #[derive(Default, Deserialize)]
        struct PageMeta {
            r#continue: Option<String>,
        }
        let (mut connection, mut items) = (None, Vec::new());
        let mut next = String::new();
        loop {
            let query = format!("limit={PAGE}&labelSelector={}{next}", query_escaped(selector));
            let path = format!("{path}?{query}");
            let page: Page = self
                .send(&mut connection, Method::GET, &path, None, self.refusing(right))
                .await?;
            items.extend(page.items.into_iter().flatten());
            match page.metadata.r#continue.filter(|next| !next.is_empty()) {
                Some(more) => next = format!("&continue={}", query_escaped(&more)),
                None => return Ok(items),
            }
        }
    }

    fn refusing<'a>(&'a self, right: &'a Right) -> impl Fn(StatusCode, &str) -> SourceError + 'a {
        |status, body| {
            let resource = right.text(&self.namespace);
            let resource = resource.split_once(' ').map_or(&*resource, |(_, resource)| resource);
            refused(right.verb, resource, status, body)
        }
    }

    async fn send<T: DeserializeOwned>(
        &self,
        connection: &mut Option<Connection>,
        method: Method,
        path: &str,
        body: Option<&Value>,
        refused: impl Fn(StatusCode, &str) -> SourceError,
    ) -> Result<T, SourceError> {
        let mut call = Call::new(method, path);
        call.body = body.map_or_else(Bytes::new, |body| body.to_string().into());
        let answer = self.client.call(connection, &call, refused).await?;
        let text = answer.whole(MAX_ANSWER).await?;
        let unexpected = |_| SourceError::new("the answer is not one of an API server");
        serde_json::from_slice(&text).map_err(unexpected)
    }
}

/// Turns 404 into `None`.
fn found<T>(answer: Result<T, SourceError>) -> Result<Option<T>, SourceError> {
    match answer {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.has_status(StatusCode::NOT_FOUND) => Ok(None),
        Err(error) => Err(error),
    }
}

fn string(value: &Value, pointer: &str) -> String {
    value
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned()
}

fn node(value: &Value) -> Node {
    Node {
        name: string(value, "/metadata/name"),
        architecture: string(value, "/status/nodeInfo/architecture"),
        operating_system: string(value, "/status/nodeInfo/operatingSystem"),
    }
}

/// The reasons for which a container waits although nothing will change by itself.
const STUCK: &[&str] = &[
    "ErrImagePull",
    "ImagePullBackOff",
    "ErrImageNeverPull",
    "InvalidImageName",
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
    "CrashLoopBackOff",
];

fn pod_state(value: &Value) -> PodState {
    let container = value.pointer("/status/containerStatuses/0/state");
    let (kind, state) = ["running", "waiting", "terminated"]
        .into_iter()
        .find_map(|kind| Some((kind, container?.get(kind)?)))
        .unwrap_or(("waiting", &Value::Null));
    let of_pod = (string(value, "/status/reason"), string(value, "/status/message"));
    let of_container = (string(state, "/reason"), string(state, "/message"));
    let (reason, message) = if of_pod.0.is_empty() { of_container } else { of_pod };
    let phase = match &*string(value, "/status/phase") {
        "Succeeded" | "Failed" => Phase::Ended,
        _ => match kind {
            "running" => Phase::Running,
            "terminated" => Phase::Ended,
            _ if STUCK.contains(&&*reason) => Phase::Stuck,
            _ => Phase::Waiting,
        },
    };
    let reason = match (&*reason, &*message) {
        ("", "") => String::new(),
        (reason, "") => reason.to_owned(),
        ("", message) => one_line(message).into_owned(),
        (reason, message) => format!("{reason}: {}", one_line(message)),
    };
    PodState {
        name: string(value, "/metadata/name"),
        is_new: container.is_none() && value.pointer("/status/startTime").is_none(),
        phase,
        reason,
    }
}

/// Returns the server's own message, and the user that it names.
fn message_of(body: &str) -> String {
    let message = serde_json::from_str::<ApiStatus>(body).map(|status| status.message);
    let message = message.ok().filter(|message| !message.is_empty());
    one_line(message.as_deref().unwrap_or(body)).into_owned()
}

/// Returns why an API server refuses a request, and what to do. `resource` includes the namespace.
fn refused(verb: &str, resource: &str, status: StatusCode, body: &str) -> SourceError {
    let message = message_of(body);
    let (problem, remedy) = match status {
        StatusCode::UNAUTHORIZED => (
            "the API server rejected the credentials".to_owned(),
            "a kubeconfig whose token or certificate has not expired",
        ),
        StatusCode::FORBIDDEN if message.contains(" cannot ") => (
            format!("{} lacks the permission to {verb} {resource}", user_of(&message)),
            "deploy/kubernetes/rbac-nodes.yaml grants it",
        ),
        _ => (message, ""),
    };
    SourceError::new(format!("{}: {problem}", status_name(status))).remedy(remedy)
}

/// Returns the user in the message of a 403.
fn user_of(message: &str) -> String {
    let user = message
        .split_once("User \"")
        .and_then(|(_, rest)| rest.split('"').next());
    user.unwrap_or("the user").to_owned()
}

/// Returns why an API server refuses the pod. Admission by PodSecurity has the same status as a missing permission.
fn refused_pod(namespace: &str, status: StatusCode, body: &str) -> SourceError {
    let message = message_of(body);
    if status == StatusCode::FORBIDDEN && message.contains("violates PodSecurity") {
        let problem = format!("namespace {namespace} does not admit the pod: {message}");
        let label = format!("kubectl label namespace {namespace} pod-security.kubernetes.io/enforce=privileged");
        return SourceError::new(problem).remedy(&label);
    }
    refused("create", &format!("pods in namespace {namespace}"), status, body)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The message of a refusal by Kubernetes 1.31.11, as a user of another tracer recorded it (cilium/pwru, issue
    /// 583).
    const RECORDED: &str = r#"pods "pwru" is forbidden: violates PodSecurity "baseline:latest": host namespaces (hostNetwork=true, hostPID=true), hostPath volumes (volume "sys-kernel-debug"), privileged (container "pwru" must not set securityContext.privileged=true)"#;
    /// The refusal of a pod of `nodes`, in the same form.
    const POD_SECURITY: &str = r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"pods \"kmesh-trace-1\" is forbidden: violates PodSecurity \"baseline:latest\": host namespaces (hostPID=true), hostPath volumes (volume \"cgroup\"), non-default capabilities (container \"kmesh-trace\" must not include \"BPF\", \"PERFMON\", \"SYS_PTRACE\" in securityContext.capabilities.add)","reason":"Forbidden","details":{"name":"kmesh-trace-1","kind":"pods"},"code":403}"#;
    const NO_RIGHT: &str = r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"pods is forbidden: User \"alice\" cannot create resource \"pods\" in API group \"\" in the namespace \"tools\"","reason":"Forbidden","details":{"kind":"pods"},"code":403}"#;

    #[test]
    fn refusal_by_pod_security_names_the_label() {
        let error = refused_pod("tools", StatusCode::FORBIDDEN, POD_SECURITY).to_string();
        assert!(error.starts_with("namespace tools does not admit the pod: "), "{error}");
        assert!(error.contains("hostPID=true"), "{error}");
        let label = "\n  try: kubectl label namespace tools pod-security.kubernetes.io/enforce=privileged";
        assert!(error.ends_with(label), "{error}");
        let status = json!({"kind": "Status", "message": RECORDED, "reason": "Forbidden", "code": 403});
        let error = refused_pod("tools", StatusCode::FORBIDDEN, &status.to_string()).to_string();
        assert!(error.contains(RECORDED) && error.ends_with(label), "{error}");
    }

    #[test]
    fn missing_permission_names_user_verb_resource_and_namespace() {
        let error = refused_pod("tools", StatusCode::FORBIDDEN, NO_RIGHT).to_string();
        let expected = "403 Forbidden: alice lacks the permission to create pods in namespace tools\n  \
                        try: deploy/kubernetes/rbac-nodes.yaml grants it";
        assert_eq!(error, expected);
        assert_eq!(CREATE_EXEC.text("tools"), "create pods/exec in namespace tools");
        assert_eq!(LIST_NODES.text("tools"), "list nodes in the whole cluster");
    }

    #[test]
    fn state_of_a_pod_is_that_of_its_container() {
        let pod = |phase: &str, state: Value| {
            let status = json!({"phase": phase, "containerStatuses": [{"state": state}]});
            let state = pod_state(&json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n"}, "status": status}));
            (state.phase, state.reason)
        };
        let waiting = |reason: &str, message: &str| json!({"waiting": {"reason": reason, "message": message}});
        assert_eq!(pod("Running", json!({"running": {}})), (Phase::Running, String::new()));
        assert_eq!(
            pod("Pending", waiting("ContainerCreating", "")),
            (Phase::Waiting, "ContainerCreating".to_owned())
        );
        assert_eq!(
            pod("Pending", waiting("ErrImagePull", "no such image")),
            (Phase::Stuck, "ErrImagePull: no such image".to_owned())
        );
        assert_eq!(
            pod("Failed", json!({"terminated": {"reason": "Error"}})),
            (Phase::Ended, "Error".to_owned())
        );
        let evicted = json!({"status": {"phase": "Failed", "reason": "DeadlineExceeded", "message": "too long"}});
        assert_eq!(pod_state(&evicted).reason, "DeadlineExceeded: too long");
        assert_eq!(pod_state(&json!({})).phase, Phase::Waiting);
    }
}
