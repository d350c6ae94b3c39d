//! The name sources as the command line starts them, and the objects of their updates so far. This is a separate
//! implementation of what an update means.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

use clap::Parser;
use kmesh_trace::cli::Cli;
use kmesh_trace::config::{Config, Environment};
use kmesh_trace::names::sources::{RefreshRequest, Sources, Status, StatusMessage};
use kmesh_trace::names::update::{
    Change, ControllerObject, EndpointsObject, Key, Kind, NodeObject, Object, PodObject, Scope, ServiceObject,
    SourceId, SourceUpdate,
};
use kmesh_trace::output::NameSourceStatus;

use crate::fixture::TEST_TIMEOUT;

/// The objects that exist according to the updates so far, and the status messages.
#[derive(Default)]
pub struct Objects {
    objects: HashMap<(SourceId, Key), Object>,
    /// Objects that a running list has not contained so far.
    unlisted: HashMap<(SourceId, Scope), HashSet<Key>>,
    /// The number of complete lists.
    pub lists: usize,
    /// The status messages, without the prefix.
    pub lines: Vec<String>,
}

fn key(object: &Object) -> (Kind, Key) {
    match object {
        Object::Pod(pod) => (Kind::Pods, Key::Pod(pod.uid.clone())),
        Object::Service(one) => (Kind::Services, Key::Service(one.namespace.clone(), one.name.clone())),
        Object::Endpoints(one) => (Kind::Endpoints, Key::Endpoints(one.namespace.clone(), one.name.clone())),
        Object::Controller(one) => (one.kind, Key::Controller(one.uid.clone())),
        Object::Node(one) => (Kind::Nodes, Key::Node(one.name.clone())),
    }
}

/// Whether a list of this scope contains the object.
fn is_in(scope: &Scope, object: &Object) -> bool {
    match scope {
        Scope::All(kind) => key(object).0 == *kind,
        Scope::PodsOfNode(node) => matches!(object, Object::Pod(pod) if pod.node.as_ref() == Some(node)),
    }
}

impl Objects {
    fn apply(&mut self, SourceUpdate { source, change, .. }: SourceUpdate) {
        match change {
            Change::ListStart(scope) => {
                let listed = |(one, object): (&(SourceId, Key), &Object)| {
                    (one.0 == source && is_in(&scope, object)).then(|| one.1.clone())
                };
                let unlisted = self.objects.iter().filter_map(listed).collect();
                self.unlisted.insert((source, scope), unlisted);
            }
            Change::Upsert(object) => {
                let (_, key) = key(&object);
                for ((_, _), unlisted) in self.unlisted.iter_mut().filter(|((one, _), _)| *one == source) {
                    unlisted.remove(&key);
                }
                self.objects.insert((source, key), object);
            }
            Change::ListEnd(scope) => {
                for key in self.unlisted.remove(&(source, scope)).expect("a list that has begun") {
                    self.objects.remove(&(source, key));
                }
                self.lists += 1;
            }
            Change::Delete(key) => _ = self.objects.remove(&(source, key)),
        }
    }

    pub fn pods(&self) -> impl Iterator<Item = &PodObject> {
        self.objects.values().filter_map(|object| match object {
            Object::Pod(pod) => Some(pod),
            _ => None,
        })
    }

    /// Returns a pod whose name starts with `name`.
    pub fn pod(&self, name: &str) -> Option<&PodObject> {
        self.pods().find(|pod| pod.name.starts_with(name))
    }

    pub fn service(&self, name: &str) -> Option<&ServiceObject> {
        self.objects.values().find_map(|object| match object {
            Object::Service(service) if service.name == name => Some(service),
            _ => None,
        })
    }

    pub fn endpoints(&self, service: &str) -> Option<&EndpointsObject> {
        self.objects.values().find_map(|object| match object {
            Object::Endpoints(endpoints) if endpoints.service == service => Some(endpoints),
            _ => None,
        })
    }

    pub fn controller(&self, uid: &str) -> Option<&ControllerObject> {
        self.objects.values().find_map(|object| match object {
            Object::Controller(controller) if controller.uid == uid => Some(controller),
            _ => None,
        })
    }

    pub fn nodes(&self) -> Vec<&NodeObject> {
        let nodes = self.objects.values().filter_map(|object| match object {
            Object::Node(node) => Some(node),
            _ => None,
        });
        nodes.collect()
    }

    /// Returns the first status message that contains `part`.
    fn find_line(&self, part: &str) -> Option<&str> {
        self.lines.iter().map(String::as_str).find(|line| line.contains(part))
    }
}

#[derive(Default)]
struct Shared {
    objects: Mutex<Objects>,
    changed: Condvar,
    is_stopped: Mutex<bool>,
}

/// Running sources. Dropping this stops them.
pub struct SourceListener {
    shared: Arc<Shared>,
    refresh: RefreshRequest,
    status: Arc<Status>,
}

/// Starts the sources of a command line.
pub fn start_sources(arguments: &str) -> SourceListener {
    try_start_sources(arguments).unwrap_or_else(|error| panic!("{arguments}: {error}"))
}

/// Starts the sources of a command line, or returns why that failed.
pub fn try_start_sources(arguments: &str) -> Result<SourceListener, String> {
    let environment = Environment {
        stdin_is_terminal: false,
        term: None,
        no_color: None,
        stdout_is_terminal: false,
        page_size: 4096,
    };
    let words = ["kmesh-trace"].into_iter().chain(arguments.split_whitespace());
    let cli = Cli::try_parse_from(words).map_err(|error| error.to_string())?;
    let config = Config::new(&cli, environment).map_err(|error| error.to_string())?;
    let sources = Sources::prepare(&config.sources).map_err(|error| format!("{error:#}"))?;
    let shared = Arc::new(Shared::default());
    let refresh = sources.refresh_request();
    let (for_status, for_updates) = (Arc::clone(&shared), Arc::clone(&shared));
    let on_status = move |message| {
        let (StatusMessage::Note(text) | StatusMessage::Error(text)) = message;
        for_status
            .objects
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .lines
            .push(text);
        for_status.changed.notify_all();
    };
    let on_updates = move |updates: Vec<SourceUpdate>| {
        if *for_updates.is_stopped.lock().unwrap() {
            return ControlFlow::Break(());
        }
        let mut objects = for_updates.objects.lock().unwrap_or_else(PoisonError::into_inner);
        updates.into_iter().for_each(|update| objects.apply(update));
        drop(objects);
        for_updates.changed.notify_all();
        ControlFlow::Continue(())
    };
    let status = sources
        .start(NameSourceStatus::default(), on_status, on_updates)
        .map_err(|error| error.to_string())?;
    Ok(SourceListener {
        shared,
        refresh,
        status,
    })
}

impl SourceListener {
    /// Waits until `find` returns something.
    pub fn wait<T>(&self, what: &str, mut find: impl FnMut(&Objects) -> Option<T>) -> T {
        let deadline = Instant::now() + TEST_TIMEOUT;
        let mut objects = self.shared.objects.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(found) = find(&objects) {
                return found;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let pods: Vec<_> = objects
                    .pods()
                    .map(|pod| (&pod.namespace, &pod.name, &pod.ips))
                    .collect();
                panic!(
                    "timeout: waited {} s for {what}: {:?} {pods:?}",
                    TEST_TIMEOUT.as_secs(),
                    objects.lines
                );
            }
            objects = self
                .shared
                .changed
                .wait_timeout(objects, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Waits for a status message that contains `part`.
    pub fn wait_line(&self, part: &str) -> String {
        self.wait(part, |objects| objects.find_line(part).map(str::to_owned))
    }

    /// Returns the status messages so far.
    pub fn lines(&self) -> Vec<String> {
        self.shared
            .objects
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .lines
            .clone()
    }

    /// Returns the status messages so far, without those about a late response, which depend on the machine's load.
    pub fn lines_without_delays(&self) -> Vec<String> {
        let is_delay = |line: &str| {
            line.starts_with("names come again from")
                || line.starts_with("warning: no updates from")
                    && (line.contains("no answer for") || line.contains("the answer stopped in the middle for"))
        };
        self.lines().into_iter().filter(|line| !is_delay(line)).collect()
    }

    /// Requests a refresh, as for an unknown container.
    pub fn refresh(&self) {
        self.refresh.request();
    }

    /// Whether the tool would now exit with status 1.
    pub fn has_failed(&self) -> bool {
        self.status.has_failed()
    }
}

impl Drop for SourceListener {
    fn drop(&mut self) {
        *self.shared.is_stopped.lock().unwrap_or_else(PoisonError::into_inner) = true;
    }
}
