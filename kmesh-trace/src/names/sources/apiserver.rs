//! The API server: it lists the objects of each kind in pages, and then watches them for changes.
//!
//! Pages and events are parsed as they arrive. Each kind is followed on its own connection: a missing permission degrades that
//! kind alone.

use std::time::Duration;

use http::StatusCode;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::error::{SourceError, one_line, status_name};
use super::http_client::{ANSWER_TIMEOUT, Answer, Connection, HttpClient};
use super::reporter::{Reporter, Stopped};
use super::{BACK_OFF, MIN_REFRESH_INTERVAL, RefreshRequests, Source, now};
use crate::names::objects::Writer;
use crate::names::objects::object_list::{Event, EventReader, ListMeta, ObjectReader, Status};
use crate::names::update::{Change, Kind, Scope};

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

/// An API server that can be asked.
pub struct ApiServerSource {
    /// The server.
    pub client: HttpClient,
    /// The name of this node.
    pub node: String,
    /// Whether only this node's pods are wanted.
    pub this_node: bool,
    /// Requests to list this node's pods at once.
    pub requests: RefreshRequests,
}

impl Source for ApiServerSource {
    async fn run(self, reporter: Reporter) {
        let requests = self.requests.clone();
        let refresh = self.refresh(&reporter, requests);
        let of_cluster = async {
            // A node's own credentials are for its pods, and not for other kinds.
            if !self.this_node {
                tokio::join!(
                    self.follow_endpoints(&reporter),
                    self.follow(&reporter, &REPLICA_SETS),
                    self.follow(&reporter, &JOBS),
                    self.follow(&reporter, &NODES),
                );
            }
        };
        tokio::join!(
            refresh,
            self.follow(&reporter, &PODS),
            self.follow(&reporter, &SERVICES),
            of_cluster
        );
    }
}

/// Why a kind is not followed any more.
#[derive(PartialEq, Eq)]
enum End {
    /// The server does not have the kind.
    NoSuchKind,
    /// Nobody needs it any more.
    Stopped,
}

/// Why listing or watching ends.
enum Break {
    Error(SourceError),
    /// The resource version is too old: all objects must be listed again.
    Expired,
    Stopped,
}

impl From<SourceError> for Break {
    fn from(error: SourceError) -> Self {
        Self::Error(error)
    }
}

impl From<Stopped> for Break {
    fn from(Stopped: Stopped) -> Self {
        Self::Stopped
    }
}

impl ApiServerSource {
    /// Follows EndpointSlices, or Endpoints if the server is too old for them.
    async fn follow_endpoints(&self, reporter: &Reporter) {
        if self.follow(reporter, &SLICES).await == End::NoSuchKind {
            self.follow(reporter, &ENDPOINTS).await;
        }
    }

    /// Lists the objects of a kind and watches them, for good.
    async fn follow(&self, reporter: &Reporter, resource: &Resource) -> End {
        let mut connection = None;
        let mut version: Option<String> = None;
        let mut back_off = BACK_OFF.0;
        loop {
            let began = Instant::now();
            let step = match &version {
                None => {
                    let selector = if self.this_node {
                        self.selector(resource)
                    } else {
                        String::new()
                    };
                    let scope = Scope::All(resource.kind);
                    let listed = self.list(reporter, resource, &mut connection, scope, &selector).await;
                    listed.map(|listed| {
                        answered(reporter, resource);
                        version = Some(listed);
                    })
                }
                Some(_) => {
                    let watched = self.watch(reporter, resource, &mut connection, &mut version).await;
                    // A server that ends each watch at once is not asked without pause.
                    sleep_until(began + BACK_OFF.0).await;
                    watched
                }
            };
            let error = match step {
                Ok(()) => {
                    back_off = BACK_OFF.0;
                    continue;
                }
                Err(Break::Stopped) => return End::Stopped,
                Err(Break::Expired) => {
                    version = None;
                    sleep_until(began + BACK_OFF.0).await;
                    continue;
                }
                Err(Break::Error(error)) => error,
            };
            connection = None;
            let is_pods = resource.kind == Kind::Pods;
            if error.has_status(StatusCode::NOT_FOUND) && !is_pods {
                return End::NoSuchKind;
            }
            match is_pods {
                true => reporter.failed(error),
                false => reporter.lacks(resource.name, error),
            }
            sleep(back_off).await;
            back_off = (back_off * 2).min(BACK_OFF.1);
        }
    }

    /// Lists this node's pods whenever that is requested, at most once a second.
    async fn refresh(&self, reporter: &Reporter, mut requests: RefreshRequests) {
        let mut connection = None;
        loop {
            requests.wait().await;
            let mut began = Instant::now();
            requests.mark_seen();
            let mut back_off = MIN_REFRESH_INTERVAL;
            let scope = || Scope::PodsOfNode(self.node.clone());
            let selector = self.selector(&PODS);
            // The watch reports what is wrong with the server.
            while let Err(end) = self.list(reporter, &PODS, &mut connection, scope(), &selector).await {
                if matches!(end, Break::Stopped) {
                    return;
                }
                connection = None;
                sleep_until(began + back_off).await;
                back_off = (back_off * 2).min(BACK_OFF.1);
                began = Instant::now();
                requests.mark_seen();
            }
            sleep_until(began + MIN_REFRESH_INTERVAL).await;
        }
    }

    /// Returns the query that selects this node's pods; nothing for other kinds.
    fn selector(&self, resource: &Resource) -> String {
        match resource.kind {
            Kind::Pods => format!("&fieldSelector=spec.nodeName%3D{}", query_escaped(&self.node)),
            _ => String::new(),
        }
    }

    /// Reports all objects of a scope. Returns the resource version of the list.
    async fn list(
        &self,
        reporter: &Reporter,
        resource: &Resource,
        connection: &mut Option<Connection>,
        scope: Scope,
        selector: &str,
    ) -> Result<String, Break> {
        let mut list = reporter.list(now(), scope);
        let mut next = String::new();
        loop {
            let path = format!("{}?limit={PAGE}{selector}{next}", resource.path);
            let refused = |status, body: &str| refused(resource, status, body);
            let mut answer = match self.client.get(connection, &path, refused).await {
                // The pages expire while a very long list is read.
                Err(error) if error.has_status(StatusCode::GONE) => return Err(Break::Expired),
                answer => answer?,
            };
            let page = self.page(resource, &mut answer, &mut list).await;
            let page = match page {
                Err(_) if list.is_stopped() => return Err(Break::Stopped),
                page => page?,
            };
            if let Some(more) = page.next {
                next = format!("&continue={}", query_escaped(&more));
                continue;
            }
            let version = page.resource_version.ok_or_else(no_api_server)?;
            list.end()?;
            return Ok(version);
        }
    }

    async fn page(
        &self,
        resource: &Resource,
        answer: &mut Answer,
        list: &mut super::reporter::List<'_>,
    ) -> Result<ListMeta, SourceError> {
        let mut reader = ObjectReader::new(Writer::ApiServer, Some(resource.kind_name));
        while let Some(part) = answer.part(ANSWER_TIMEOUT).await? {
            let read = reader.feed(&part, &mut |object| list.upsert(object));
            read.map_err(|error| no_api_server().because(&error.to_string()))?;
            list.flush()?;
        }
        reader
            .finish()
            .map_err(|error| no_api_server().because(&error.to_string()))?;
        list.left_out(reader.left_out);
        reader.list.ok_or_else(no_api_server)
    }

    /// Reports the changes after `version`, until the watch ends. Leaves in `version` where to go on; `None`: all objects must
    /// be listed again.
    async fn watch(
        &self,
        reporter: &Reporter,
        resource: &Resource,
        connection: &mut Option<Connection>,
        version: &mut Option<String>,
    ) -> Result<(), Break> {
        let selector = if self.this_node {
            self.selector(resource)
        } else {
            String::new()
        };
        let path = format!(
            "{}?watch=true&allowWatchBookmarks=true&timeoutSeconds={WATCH_SECONDS}&resourceVersion={}{selector}",
            resource.path,
            query_escaped(version.as_deref().unwrap_or_default())
        );
        let refused = |status, body: &str| refused(resource, status, body);
        let mut answer = match self.client.get(connection, &path, refused).await {
            Err(error) if error.has_status(StatusCode::GONE) => return Err(Break::Expired),
            answer => answer?,
        };
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
            let (events, end) = read_events(&mut reader, &part);
            *version = reader.version.clone().or(version.take());
            reporter.left_out(std::mem::take(&mut reader.left_out));
            if events.contains(&Event::Unknown) {
                relist_at = relist_at.min(Instant::now() + RELIST_AFTER);
            }
            if !events.is_empty() {
                let changes = events.into_iter().filter_map(change);
                reporter.changes(now(), changes)?;
                answered(reporter, resource);
            }
            match end {
                Some(Ended::Expired) => return Err(Break::Expired),
                Some(Ended::Failed(error)) => return Err(Break::Error(error)),
                None => {}
            }
        }
    }
}

/// Reports that the resource is there. Pods are what makes an API server a source of names.
fn answered(reporter: &Reporter, resource: &Resource) {
    match resource.kind {
        Kind::Pods => reporter.answered(),
        _ => reporter.has(resource.name),
    }
}

fn change(event: Event) -> Option<Change> {
    match event {
        Event::Upsert(object) => Some(Change::Upsert(object)),
        Event::Delete(key) => Some(Change::Delete(key)),
        Event::Bookmark | Event::Error(_) | Event::Unknown => None,
    }
}

/// How an event ends the watch.
enum Ended {
    /// The resource version is too old.
    Expired,
    /// The server reports an error, or something that is no event.
    Failed(SourceError),
}

/// Reads events, up to one that ends the watch.
fn read_events(reader: &mut EventReader, part: &[u8]) -> (Vec<Event>, Option<Ended>) {
    let mut events = Vec::new();
    let mut end = None;
    let read = reader.feed(part, &mut |event| match event {
        _ if end.is_some() => {}
        Some(Event::Error(status)) if status.code == StatusCode::GONE.as_u16() => end = Some(Ended::Expired),
        Some(Event::Error(status)) => end = Some(Ended::Failed(of_status(&status))),
        Some(event) => events.push(event),
        None => end = Some(Ended::Failed(no_sense())),
    });
    if let (Err(error), None) = (read, &end) {
        end = Some(Ended::Failed(no_sense().because(&error.to_string())));
    }
    (events, end)
}

fn no_api_server() -> SourceError {
    SourceError::new("the answer is not one of an API server".to_owned())
}

fn no_sense() -> SourceError {
    SourceError::new("the server sent an event that makes no sense".to_owned())
}

fn of_status(status: &Status) -> SourceError {
    let message = if status.message.is_empty() {
        &status.reason
    } else {
        &status.message
    };
    match StatusCode::from_u16(status.code) {
        Ok(code) => SourceError::new(format!("{}: {}", status_name(code), one_line(message))).status(code),
        Err(_) if message.is_empty() => no_sense(),
        Err(_) => SourceError::new(one_line(message)),
    }
}

/// Says why an API server refuses, and what to do.
fn refused(resource: &Resource, status: StatusCode, body: &str) -> SourceError {
    let name = status_name(status);
    let message = serde_json::from_str::<Status>(body)
        .map(|status| status.message)
        .unwrap_or_default();
    match status {
        StatusCode::UNAUTHORIZED => SourceError::new(format!("{name}: the API server rejected the credentials"))
            .remedy("a kubeconfig whose token or certificate has not expired"),
        StatusCode::FORBIDDEN => {
            let user = message
                .split_once("User \"")
                .and_then(|(_, rest)| rest.split('"').next());
            let user = user.map_or_else(|| "the user".to_owned(), one_line);
            let problem = format!(
                "{name}: {user} lacks the permission to list and watch {}",
                resource.name
            );
            SourceError::new(problem).remedy(match user.starts_with("system:node:") {
                true => "--this-node: a node may ask for its own pods",
                false => "grant it with a ClusterRole",
            })
        }
        StatusCode::NOT_FOUND => SourceError::new(format!("{name}: the server does not have {}", resource.name)),
        _ if message.is_empty() => SourceError::new(format!("{name}: {}", one_line(body))),
        _ => SourceError::new(format!("{name}: {}", one_line(&message))),
    }
}

/// Escapes a value of a query.
fn query_escaped(text: &str) -> String {
    let escaped = text.bytes().map(|byte| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    });
    escaped.collect()
}

#[cfg(test)]
mod tests;
