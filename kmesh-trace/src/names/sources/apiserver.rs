//! The API server: it lists the objects of each kind in pages, and then watches them for changes.
//!
//! Pages and events are parsed as they arrive. Each kind is followed on its own connection: a missing permission
//! degrades that kind alone.

use std::time::Duration;

use http::StatusCode;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::error::{SourceError, one_line, status_name};
use super::health::Report;
use super::http_client::{Answer, Connection, HttpClient};
use super::reporter::Reporter;
use super::{BACK_OFF, MIN_REFRESH_INTERVAL, Source, now};
use crate::names::objects::Writer;
use crate::names::objects::object_list::{ApiStatus, EventReader, ObjectReader, WatchError, WatchEvent};
use crate::names::update::{Kind, Scope};

/// The objects of one page.
const PAGE: u32 = 500;
/// The longest watch: the server ends it, and the next one goes on from there.
const WATCH_SECONDS: u32 = 290;
/// The longest silence of a watch. Bookmarks come about once a minute.
const WATCH_TIMEOUT: Duration = Duration::from_secs(300);
/// When something changed that cannot be read, all objects are listed again after this time.
const RELIST_AFTER: Duration = Duration::from_secs(30);

/// A kind of objects that an API server has.
struct Resource {
    kind: Kind,
    kind_name: &'static str,
    /// The path below the API's prefix.
    path: &'static str,
    /// The name that permissions have.
    name: &'static str,
}

const fn resource(kind: Kind, kind_name: &'static str, path: &'static str, name: &'static str) -> Resource {
    Resource {
        kind,
        kind_name,
        path,
        name,
    }
}

const PODS: Resource = resource(Kind::Pods, "Pod", "/api/v1/pods", "pods");
const SERVICES: Resource = resource(Kind::Services, "Service", "/api/v1/services", "services");
const SLICES: Resource = resource(
    Kind::Endpoints,
    "EndpointSlice",
    "/apis/discovery.k8s.io/v1/endpointslices",
    "endpointslices.discovery.k8s.io",
);
const ENDPOINTS: Resource = resource(Kind::Endpoints, "Endpoints", "/api/v1/endpoints", "endpoints");
const REPLICA_SETS: Resource = resource(
    Kind::ReplicaSets,
    "ReplicaSet",
    "/apis/apps/v1/replicasets",
    "replicasets.apps",
);
const JOBS: Resource = resource(Kind::Jobs, "Job", "/apis/batch/v1/jobs", "jobs.batch");
const NODES: Resource = resource(Kind::Nodes, "Node", "/api/v1/nodes", "nodes");

pub struct ApiServerSource {
    pub client: HttpClient,
    /// The name of this node.
    pub node: String,
    /// Whether only this node's pods are wanted.
    pub this_node: bool,
    /// Requests to list this node's pods at once.
    pub requests: watch::Receiver<()>,
}

impl Source for ApiServerSource {
    async fn run(self, reporter: Reporter) {
        let of_cluster = async {
            // A node's own credentials are for its pods and for Services, but not for other kinds.
            if !self.this_node {
                tokio::join!(
                    async {
                        self.follow(&reporter, &SLICES).await;
                        // The server is too old for EndpointSlices.
                        self.follow(&reporter, &ENDPOINTS).await;
                    },
                    self.follow(&reporter, &REPLICA_SETS),
                    self.follow(&reporter, &JOBS),
                    self.follow(&reporter, &NODES),
                );
            }
        };
        tokio::join!(
            self.refresh(&reporter, self.requests.clone()),
            self.follow(&reporter, &PODS),
            self.follow(&reporter, &SERVICES),
            of_cluster
        );
    }
}

impl ApiServerSource {
    /// Lists the objects of a kind and watches them, until the server turns out not to have the kind.
    async fn follow(&self, reporter: &Reporter, resource: &Resource) {
        let is_pods = resource.kind == Kind::Pods;
        let mut connection = None;
        let mut version: Option<String> = None;
        let mut back_off = BACK_OFF.0;
        loop {
            let start = Instant::now();
            let step = match &version {
                None => {
                    let scope = Scope::All(resource.kind);
                    let listed = self.list(reporter, resource, &mut connection, scope, self.this_node);
                    let listed = listed.await.map(|listed| version = Some(listed));
                    listed.inspect(|()| answered(reporter, resource))
                }
                Some(_) => {
                    let watched = self.watch(reporter, resource, &mut connection, &mut version).await;
                    // A server that ends each watch at once is not asked without pause.
                    sleep_until(start + BACK_OFF.0).await;
                    watched
                }
            };
            let Err(error) = step else {
                back_off = BACK_OFF.0;
                continue;
            };
            connection = None;
            // The resource version, or a page of the list, is too old: all objects must be listed again.
            if error.has_status(StatusCode::GONE) {
                version = None;
                sleep_until(start + BACK_OFF.0).await;
                continue;
            }
            if error.has_status(StatusCode::NOT_FOUND) && !is_pods {
                return;
            }
            reporter.report(match is_pods {
                true => Report::Failed(error),
                false => Report::Lacks(resource.name, error),
            });
            sleep(back_off).await;
            back_off = (back_off * 2).min(BACK_OFF.1);
        }
    }

    /// Lists this node's pods whenever that is requested, at most once a second.
    async fn refresh(&self, reporter: &Reporter, mut requests: watch::Receiver<()>) {
        let mut connection = None;
        loop {
            // The sender lives as long as the process.
            _ = requests.changed().await;
            let mut back_off = MIN_REFRESH_INTERVAL;
            loop {
                let start = Instant::now();
                requests.mark_unchanged();
                let scope = Scope::PodsOfNode(self.node.clone());
                // The watch reports the errors of the server.
                let listed = self.list(reporter, &PODS, &mut connection, scope, true).await;
                if listed.is_ok() {
                    sleep_until(start + MIN_REFRESH_INTERVAL).await;
                    break;
                }
                sleep_until(start + back_off).await;
                connection = None;
                back_off = (back_off * 2).min(BACK_OFF.1);
            }
        }
    }

    /// Reports all objects of a scope. Returns the resource version of the list.
    async fn list(
        &self,
        reporter: &Reporter,
        resource: &Resource,
        connection: &mut Option<Connection>,
        scope: Scope,
        is_of_node: bool,
    ) -> Result<String, SourceError> {
        let mut list = reporter.list(now(), scope);
        let mut next = String::new();
        loop {
            let query = format!("limit={PAGE}{next}");
            let answer = self.get(connection, resource, &query, is_of_node).await?;
            let reader = ObjectReader::new(Writer::ApiServer, Some(resource.kind_name));
            let read = list.read(answer, reader, no_api_server, |object| object.kind() == resource.kind);
            let page = read.await?;
            if let Some(more) = page.r#continue.filter(|more| !more.is_empty()) {
                next = format!("&continue={}", query_escaped(&more));
                continue;
            }
            let version = page.resource_version.ok_or_else(no_api_server)?;
            list.end();
            return Ok(version);
        }
    }

    /// Requests objects, only those of this node if that is wanted and possible.
    async fn get(
        &self,
        connection: &mut Option<Connection>,
        resource: &Resource,
        query: &str,
        is_of_node: bool,
    ) -> Result<Answer, SourceError> {
        let mut path = format!("{}?{query}", resource.path);
        if is_of_node && resource.kind == Kind::Pods {
            path += &format!("&fieldSelector=spec.nodeName%3D{}", query_escaped(&self.node));
        }
        let refused = |status, body: &str| refused(resource, status, body);
        self.client.get(connection, &path, refused).await
    }

    /// Reports the changes after `version`, until the watch ends. Leaves in `version` where to go on; `None`: all
    /// objects must be listed again.
    async fn watch(
        &self,
        reporter: &Reporter,
        resource: &Resource,
        connection: &mut Option<Connection>,
        version: &mut Option<String>,
    ) -> Result<(), SourceError> {
        let from = query_escaped(version.as_deref().unwrap_or_default());
        let query =
            format!("watch=true&allowWatchBookmarks=true&timeoutSeconds={WATCH_SECONDS}&resourceVersion={from}");
        let mut answer = self.get(connection, resource, &query, self.this_node).await?;
        let mut reader = EventReader::new(resource.kind, resource.kind_name);
        let mut relist_at = Instant::now() + 2 * WATCH_TIMEOUT;
        loop {
            let part = match timeout_at(relist_at, answer.part(WATCH_TIMEOUT)).await {
                Ok(Ok(Some(part))) => part,
                // The server ends each watch after a while, or breaks it off: the next one goes on from here.
                Ok(Ok(None) | Err(_)) => return Ok(()),
                Err(_) => {
                    *version = None;
                    return Ok(());
                }
            };
            let (mut has_events, mut changes) = (false, Vec::new());
            let read = reader.feed(&part, &mut |event| {
                has_events = true;
                match event {
                    WatchEvent::Change(change) => changes.push(change),
                    WatchEvent::Bookmark => {}
                    WatchEvent::Unknown => relist_at = relist_at.min(Instant::now() + RELIST_AFTER),
                }
            });
            *version = reader.version.clone().or(version.take());
            reporter.left_out(std::mem::take(&mut reader.left_out));
            if has_events {
                reporter.changes(now(), changes);
                answered(reporter, resource);
            }
            read.map_err(watch_error)?;
        }
    }
}

/// Reports that the server has the resource. Pods are what makes an API server a source of names.
fn answered(reporter: &Reporter, resource: &Resource) {
    reporter.report(match resource.kind {
        Kind::Pods => Report::Answered,
        _ => Report::Has(resource.name),
    });
}

fn no_api_server() -> SourceError {
    SourceError::new("the answer is not one of an API server")
}

fn watch_error(error: WatchError) -> SourceError {
    let no_event = SourceError::new("the server sent an invalid watch event");
    match error {
        WatchError::NoEvent(None) => no_event,
        WatchError::NoEvent(Some(error)) => no_event.because(&error.to_string()),
        WatchError::Status(ApiStatus { code, message, reason }) => {
            let message = if message.is_empty() { reason } else { message };
            match StatusCode::from_u16(code) {
                Ok(code) => SourceError::new(format!("{}: {}", status_name(code), one_line(&message))).status(code),
                Err(_) if message.is_empty() => no_event,
                Err(_) => SourceError::new(one_line(&message)),
            }
        }
    }
}

/// Returns why an API server refuses, and what to do.
fn refused(resource: &Resource, status: StatusCode, body: &str) -> SourceError {
    let message = serde_json::from_str::<ApiStatus>(body).map(|status| status.message);
    let message = message.ok().filter(|message| !message.is_empty());
    let message = message.as_deref().unwrap_or(body);
    let (problem, remedy) = match status {
        StatusCode::UNAUTHORIZED => (
            "the API server rejected the credentials".to_owned(),
            "a kubeconfig whose token or certificate has not expired",
        ),
        StatusCode::FORBIDDEN => {
            let user = message
                .split_once("User \"")
                .and_then(|(_, rest)| rest.split('"').next());
            let user = user.map_or_else(|| "the user".to_owned(), one_line);
            (
                format!("{user} lacks the permission to list and watch {}", resource.name),
                match user.starts_with("system:node:") {
                    true => "--this-node: a node may ask for its own pods",
                    false => "grant it with a ClusterRole",
                },
            )
        }
        StatusCode::NOT_FOUND => (format!("the server does not have {}", resource.name), ""),
        _ => (one_line(message), ""),
    };
    SourceError::new(format!("{}: {problem}", status_name(status))).remedy(remedy)
}

/// All but the unreserved characters of RFC 3986.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

pub(crate) fn query_escaped(text: &str) -> String {
    utf8_percent_encode(text, RESERVED).to_string()
}

#[cfg(test)]
mod tests;
