//! The objects of a cluster, and servers that answer requests for them as a kubelet and an API server do.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead as _, BufReader, BufWriter, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

/// The node of all pods of a test.
pub const NODE_NAME: &str = "worker-1";

/// How often a watch stream checks whether the cluster was stopped.
const STOP_POLL_INTERVAL: Duration = Duration::from_millis(500);

/// The objects, and their changes.
#[derive(Default)]
pub struct Cluster {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    version: u64,
    /// The key is the resource and `namespace/name`.
    objects: BTreeMap<(String, String), Arc<str>>,
    events: Vec<Event>,
    /// The request line and the headers of each request.
    requests: Vec<String>,
    is_stopped: bool,
}

/// A change of an object, for the watch streams.
#[derive(Clone)]
struct Event {
    version: u64,
    resource: String,
    kind: &'static str,
    object: Arc<str>,
}

impl Cluster {
    /// Creates a cluster with these objects.
    pub fn with(objects: impl IntoIterator<Item = Value>) -> Arc<Self> {
        let cluster = Arc::new(Self::default());
        objects.into_iter().for_each(|object| cluster.put(object));
        cluster
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an object, or replaces the object with the same name.
    pub fn put(&self, mut object: Value) {
        let (resource, key) = (resource_of(&object), key_of(&object));
        let mut state = self.lock();
        object["metadata"]["resourceVersion"] = (state.version + 1).to_string().into();
        state.put(resource, key, object.to_string().into());
        drop(state);
        self.changed.notify_all();
    }

    /// Adds the text of an item, which can be malformed. Lists are sorted by `key`.
    pub fn put_item(&self, resource: &str, key: &str, item: impl Into<Arc<str>>) {
        self.lock().put(resource.to_owned(), key.to_owned(), item.into());
        self.changed.notify_all();
    }

    pub fn delete(&self, object: &Value) {
        self.delete_item(&resource_of(object), &key_of(object));
    }

    /// Deletes the item with this key.
    pub fn delete_item(&self, resource: &str, key: &str) {
        let mut state = self.lock();
        if let Some(object) = state.objects.remove(&(resource.to_owned(), key.to_owned())) {
            state.add_event(resource.to_owned(), "DELETED", object);
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

    /// Returns the request line and the headers of each request so far.
    pub fn requests(&self) -> Vec<String> {
        self.lock().requests.clone()
    }

    /// Starts a kubelet in the calling thread's network namespace. Returns the URL of its pods.
    pub fn serve_kubelet(self: &Arc<Self>) -> String {
        format!("http://{}/pods", self.serve(Self::answer_as_kubelet))
    }

    /// Starts an API server in the calling thread's network namespace, and writes a kubeconfig for it.
    pub fn serve_api_server(self: &Arc<Self>, kubeconfig: &Path) {
        let address = self.serve(Self::answer_as_api_server);
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
             clusters: [{{name: c, cluster: {{server: 'http://{address}'}}}}]\n\
             users: [{{name: u, user: {{}}}}]\n\
             contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n"
        );
        fs::write(kubeconfig, text).unwrap();
    }

    /// Starts a server that answers one request on each connection. Returns its address.
    fn serve(self: &Arc<Self>, answer: fn(&Self, &str, &mut dyn io::Write) -> io::Result<()>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let cluster = Arc::clone(self);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let cluster = Arc::clone(&cluster);
                // A client may close the connection before it has read the whole answer.
                thread::spawn(move || _ = cluster.answer_request(&stream, answer));
            }
        });
        address
    }

    fn answer_request(
        &self,
        stream: &TcpStream,
        answer: fn(&Self, &str, &mut dyn io::Write) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut request = String::new();
        let mut reader = BufReader::new(stream);
        // A line of two bytes is the empty line after the headers.
        while reader.read_line(&mut request)? > 2 {}
        self.lock().requests.push(request.clone());
        let mut out = BufWriter::with_capacity(1 << 16, stream);
        // The body ends when the connection ends.
        out.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n")?;
        answer(self, request.split(' ').nth(1).unwrap_or_default(), &mut out)?;
        out.flush()
    }

    fn answer_as_kubelet(&self, _: &str, out: &mut dyn io::Write) -> io::Result<()> {
        let items = self.lock().items("pods");
        out.write_all(br#"{"kind":"PodList","apiVersion":"v1","metadata":{},"items":["#)?;
        write_items(out, &items)?;
        out.write_all(b"]}")
    }

    fn answer_as_api_server(&self, target: &str, out: &mut dyn io::Write) -> io::Result<()> {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let resource = path.rsplit('/').next().unwrap_or_default();
        let option = |name: &str| {
            let mut options = query.split('&').filter_map(|option| option.split_once('='));
            options.find(|(key, _)| *key == name).map(|(_, value)| value.to_owned())
        };
        let number = |name: &str| option(name).and_then(|value| value.parse::<u64>().ok());
        if option("watch").is_some_and(|value| value == "true" || value == "1") {
            return self.stream_events(resource, number("resourceVersion").unwrap_or(0), out);
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
        let total = items.len();
        let from = (number("continue").unwrap_or(0) as usize).min(total);
        let until = number("limit").map_or(total, |limit| (from + limit as usize).min(total));
        let metadata = match until < total {
            true => json!({"resourceVersion": version.to_string(), "continue": until.to_string()}),
            false => json!({"resourceVersion": version.to_string()}),
        };
        let (kind, api_version) = list_kind(resource);
        write!(
            out,
            r#"{{"kind":"{kind}","apiVersion":"{api_version}","metadata":{metadata},"items":["#
        )?;
        write_items(out, &items[from..until])?;
        out.write_all(b"]}")
    }

    /// Sends the events after this version, until the client closes the connection or the cluster is stopped.
    fn stream_events(&self, resource: &str, mut after: u64, out: &mut dyn io::Write) -> io::Result<()> {
        loop {
            out.flush()?;
            let mut state = self.lock();
            while state.version <= after && !state.is_stopped {
                let result = self.changed.wait_timeout(state, STOP_POLL_INTERVAL);
                state = result.unwrap_or_else(PoisonError::into_inner).0;
            }
            if state.is_stopped {
                return Ok(());
            }
            let is_new = |event: &&Event| event.version > after && event.resource == resource;
            let events: Vec<Event> = state.events.iter().filter(is_new).cloned().collect();
            after = state.version;
            drop(state);
            for event in events {
                writeln!(out, r#"{{"type":"{}","object":{}}}"#, event.kind, event.object)?;
            }
        }
    }

    /// Ends the watch streams.
    pub fn stop(&self) {
        self.lock().is_stopped = true;
        self.changed.notify_all();
    }
}

impl State {
    fn put(&mut self, resource: String, key: String, object: Arc<str>) {
        let before = self.objects.insert((resource.clone(), key), Arc::clone(&object));
        let kind = if before.is_some() { "MODIFIED" } else { "ADDED" };
        self.add_event(resource, kind, object);
    }

    fn add_event(&mut self, resource: String, kind: &'static str, object: Arc<str>) {
        self.version += 1;
        self.events.push(Event {
            version: self.version,
            resource,
            kind,
            object,
        });
    }

    fn items(&self, resource: &str) -> Vec<Arc<str>> {
        let objects = self.objects.iter().filter(|((of, _), _)| of == resource);
        objects.map(|(_, object)| Arc::clone(object)).collect()
    }
}

fn write_items(out: &mut dyn io::Write, items: &[Arc<str>]) -> io::Result<()> {
    for (number, item) in items.iter().enumerate() {
        if number > 0 {
            out.write_all(b",")?;
        }
        out.write_all(item.as_bytes())?;
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
