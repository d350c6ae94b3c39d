//! A cluster's objects, and servers that answer questions about them as a kubelet and an API server do.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead as _, BufReader, BufWriter, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

/// The node that every pod of a test runs on.
pub const NODE_NAME: &str = "worker-1";

/// How long an event stream sleeps before it checks whether the test is over.
const STOP_CHECK: Duration = Duration::from_millis(500);

/// The objects, and what has happened to them.
#[derive(Default)]
pub struct Cluster {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    version: u64,
    /// By resource, then by `namespace/name`.
    objects: BTreeMap<(String, String), Arc<str>>,
    events: Vec<Event>,
    /// The first line and the headers of each question.
    questions: Vec<String>,
    is_over: bool,
}

/// One change of one object, for the streams of events.
#[derive(Clone)]
struct Event {
    version: u64,
    resource: String,
    kind: &'static str,
    object: Arc<str>,
}

impl Cluster {
    /// Returns a cluster of these objects.
    pub fn of(objects: impl IntoIterator<Item = Value>) -> Arc<Self> {
        let cluster = Arc::new(Self::default());
        objects.into_iter().for_each(|object| cluster.put(object));
        cluster
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an object, or replaces the one of this name.
    pub fn put(&self, mut object: Value) {
        let (resource, key) = (resource_of(&object), key_of(&object));
        let mut state = self.lock();
        object["metadata"]["resourceVersion"] = (state.version + 1).to_string().into();
        state.put(resource, key, object.to_string().into());
        drop(state);
        self.changed.notify_all();
    }

    /// Adds an item that need not be an object of any sense. `key` is for [`Self::delete_item`] and decides its place in lists.
    pub fn put_item(&self, resource: &str, key: &str, item: impl Into<Arc<str>>) {
        self.lock().put(resource.to_owned(), key.to_owned(), item.into());
        self.changed.notify_all();
    }

    /// Removes an object.
    pub fn delete(&self, object: &Value) {
        self.delete_item(&resource_of(object), &key_of(object));
    }

    /// Removes an item.
    pub fn delete_item(&self, resource: &str, key: &str) {
        let mut state = self.lock();
        if let Some(object) = state.objects.remove(&(resource.to_owned(), key.to_owned())) {
            state.happened(resource.to_owned(), "DELETED", object);
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Writes all objects to a file, as `kubectl get -o json` prints them.
    pub fn save(&self, path: &Path) {
        let state = self.lock();
        let items: Vec<&str> = state.objects.values().map(|object| &**object).collect();
        let text = format!(r#"{{"apiVersion":"v1","kind":"List","items":[{}]}}"#, items.join(","));
        fs::write(path, text).unwrap();
    }

    /// The first lines and the headers of all questions so far.
    pub fn questions(&self) -> Vec<String> {
        self.lock().questions.clone()
    }

    /// Starts a kubelet in the calling thread's network namespace. Returns the URL of its pods.
    pub fn kubelet(self: &Arc<Self>) -> String {
        format!("http://{}/pods", self.serve(Self::answer_as_kubelet))
    }

    /// Starts an API server in the calling thread's network namespace, and writes a kubeconfig for it.
    pub fn api_server(self: &Arc<Self>, kubeconfig: &Path) {
        let address = self.serve(Self::answer_as_api_server);
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
             clusters: [{{name: c, cluster: {{server: 'http://{address}'}}}}]\n\
             users: [{{name: u, user: {{}}}}]\n\
             contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n"
        );
        fs::write(kubeconfig, text).unwrap();
    }

    /// Serves one question a connection until the test is over.
    fn serve(self: &Arc<Self>, answer: fn(&Self, &str, &mut dyn io::Write) -> io::Result<()>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let cluster = Arc::clone(self);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let cluster = Arc::clone(&cluster);
                // A client that goes away in the middle of an answer is no failure.
                thread::spawn(move || _ = cluster.converse(&stream, answer));
            }
        });
        address
    }

    fn converse(
        &self,
        stream: &TcpStream,
        answer: fn(&Self, &str, &mut dyn io::Write) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut question = String::new();
        let mut lines = BufReader::new(stream);
        while lines.read_line(&mut question)? > 2 {}
        self.lock().questions.push(question.clone());
        let mut to = BufWriter::with_capacity(1 << 16, stream);
        // The end of the answer is the end of the connection.
        to.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n")?;
        answer(self, question.split(' ').nth(1).unwrap_or_default(), &mut to)?;
        to.flush()
    }

    fn answer_as_kubelet(&self, _: &str, to: &mut dyn io::Write) -> io::Result<()> {
        let items = self.lock().items("pods");
        to.write_all(br#"{"kind":"PodList","apiVersion":"v1","metadata":{},"items":["#)?;
        write_items(to, &items)?;
        to.write_all(b"]}")
    }

    fn answer_as_api_server(&self, target: &str, to: &mut dyn io::Write) -> io::Result<()> {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let resource = path.rsplit('/').next().unwrap_or_default();
        let option = |name: &str| {
            let mut options = query.split('&').filter_map(|option| option.split_once('='));
            options.find(|(key, _)| *key == name).map(|(_, value)| value.to_owned())
        };
        let number = |name: &str| option(name).and_then(|value| value.parse::<u64>().ok());
        if option("watch").is_some_and(|value| value == "true" || value == "1") {
            return self.stream_events(resource, number("resourceVersion").unwrap_or(0), to);
        }
        let (version, mut items) = {
            let state = self.lock();
            (state.version, state.items(resource))
        };
        if let Some(node) = option("fieldSelector").and_then(|selector| {
            let selector = selector.replace("%3D", "=").replace("%3d", "=");
            Some(selector.split_once("spec.nodeName=")?.1.to_owned())
        }) {
            items.retain(|item| item.contains(&format!(r#""nodeName":"{node}""#)));
        }
        let all = items.len();
        let from = (number("continue").unwrap_or(0) as usize).min(all);
        let until = number("limit").map_or(all, |limit| (from + limit as usize).min(all));
        let metadata = match until < all {
            true => json!({"resourceVersion": version.to_string(), "continue": until.to_string()}),
            false => json!({"resourceVersion": version.to_string()}),
        };
        let (kind, api_version) = list_kind(resource);
        write!(
            to,
            r#"{{"kind":"{kind}","apiVersion":"{api_version}","metadata":{metadata},"items":["#
        )?;
        write_items(to, &items[from..until])?;
        to.write_all(b"]}")
    }

    /// Sends the events after this version, until the client or the test is over.
    fn stream_events(&self, resource: &str, mut after: u64, to: &mut dyn io::Write) -> io::Result<()> {
        loop {
            to.flush()?;
            let mut state = self.lock();
            while state.version <= after && !state.is_over {
                let waited = self.changed.wait_timeout(state, STOP_CHECK);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
            if state.is_over {
                return Ok(());
            }
            let is_new = |event: &&Event| event.version > after && event.resource == resource;
            let events: Vec<Event> = state.events.iter().filter(is_new).cloned().collect();
            after = state.version;
            drop(state);
            for event in events {
                writeln!(to, r#"{{"type":"{}","object":{}}}"#, event.kind, event.object)?;
            }
        }
    }

    /// Ends the streams of events.
    pub fn end(&self) {
        self.lock().is_over = true;
        self.changed.notify_all();
    }
}

impl State {
    fn put(&mut self, resource: String, key: String, object: Arc<str>) {
        let before = self.objects.insert((resource.clone(), key), Arc::clone(&object));
        let kind = if before.is_some() { "MODIFIED" } else { "ADDED" };
        self.happened(resource, kind, object);
    }

    fn happened(&mut self, resource: String, kind: &'static str, object: Arc<str>) {
        self.version += 1;
        self.events.push(Event {
            version: self.version,
            resource,
            kind,
            object,
        });
    }

    fn items(&self, resource: &str) -> Vec<Arc<str>> {
        let of_resource = |((of, _), _): &(&(String, String), &Arc<str>)| of == resource;
        let objects = self.objects.iter().filter(of_resource);
        objects.map(|(_, object)| Arc::clone(object)).collect()
    }
}

fn write_items(to: &mut dyn io::Write, items: &[Arc<str>]) -> io::Result<()> {
    for (number, item) in items.iter().enumerate() {
        if number > 0 {
            to.write_all(b",")?;
        }
        to.write_all(item.as_bytes())?;
    }
    Ok(())
}

fn resource_of(object: &Value) -> String {
    format!("{}s", object["kind"].as_str().unwrap().to_lowercase())
}

fn key_of(object: &Value) -> String {
    let part = |name: &str| object["metadata"][name].as_str().unwrap_or_default();
    format!("{}/{}", part("namespace"), part("name"))
}

fn list_kind(resource: &str) -> (&'static str, &'static str) {
    match resource {
        "pods" => ("PodList", "v1"),
        "services" => ("ServiceList", "v1"),
        "nodes" => ("NodeList", "v1"),
        "endpointslices" => ("EndpointSliceList", "discovery.k8s.io/v1"),
        "replicasets" => ("ReplicaSetList", "apps/v1"),
        "jobs" => ("JobList", "batch/v1"),
        _ => ("EndpointsList", "v1"),
    }
}
