//! The sources, as the command line starts them, and what they have told so far: a reader of the facts that does with them
//! what their definition says, and nothing else.

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

use crate::stage::PATIENCE;

/// What is known now, by what it is named by.
#[derive(Default)]
pub struct Known {
    facts: HashMap<(SourceId, Key), Object>,
    /// Not in the list that is under way.
    absent: HashMap<(SourceId, Scope), HashSet<Key>>,
    /// Whole lists so far.
    pub lists: usize,
    /// On standard error.
    pub lines: Vec<String>,
}

fn key(fact: &Object) -> (Kind, Key) {
    match fact {
        Object::Pod(pod) => (Kind::Pods, Key::Pod(pod.uid.clone())),
        Object::Service(one) => (Kind::Services, Key::Service(one.namespace.clone(), one.name.clone())),
        Object::Endpoints(one) => (Kind::Endpoints, Key::Endpoints(one.namespace.clone(), one.name.clone())),
        Object::Controller(one) => (one.kind, Key::Controller(one.uid.clone())),
        Object::Node(one) => (Kind::Nodes, Key::Node(one.name.clone())),
    }
}

/// Whether a list of this scope would have the object.
fn is_in(scope: &Scope, fact: &Object) -> bool {
    match scope {
        Scope::All(kind) => key(fact).0 == *kind,
        Scope::PodsOfNode(node) => matches!(fact, Object::Pod(pod) if pod.node.as_ref() == Some(node)),
    }
}

impl Known {
    fn take(&mut self, SourceUpdate { source, change, .. }: SourceUpdate) {
        match change {
            Change::ListStart(scope) => {
                let listed = |(one, fact): (&(SourceId, Key), &Object)| {
                    (one.0 == source && is_in(&scope, fact)).then(|| one.1.clone())
                };
                let absent = self.facts.iter().filter_map(listed).collect();
                self.absent.insert((source, scope), absent);
            }
            Change::Upsert(fact) => {
                let (_, key) = key(&fact);
                for ((_, _), absent) in self.absent.iter_mut().filter(|((one, _), _)| *one == source) {
                    absent.remove(&key);
                }
                self.facts.insert((source, key), fact);
            }
            Change::ListEnd(scope) => {
                for key in self.absent.remove(&(source, scope)).expect("a list that had begun") {
                    self.facts.remove(&(source, key));
                }
                self.lists += 1;
            }
            Change::Delete(key) => _ = self.facts.remove(&(source, key)),
        }
    }

    /// The pods.
    pub fn pods(&self) -> impl Iterator<Item = &PodObject> {
        self.facts.values().filter_map(|fact| match fact {
            Object::Pod(pod) => Some(pod),
            _ => None,
        })
    }

    /// The pod whose name begins so.
    pub fn pod(&self, name: &str) -> Option<&PodObject> {
        self.pods().find(|pod| pod.name.starts_with(name))
    }

    /// A Service.
    pub fn service(&self, name: &str) -> Option<&ServiceObject> {
        self.facts.values().find_map(|fact| match fact {
            Object::Service(service) if service.name == name => Some(service),
            _ => None,
        })
    }

    /// The endpoints of a Service.
    pub fn endpoints(&self, service: &str) -> Option<&EndpointsObject> {
        self.facts.values().find_map(|fact| match fact {
            Object::Endpoints(endpoints) if endpoints.service == service => Some(endpoints),
            _ => None,
        })
    }

    /// A controller.
    pub fn controller(&self, uid: &str) -> Option<&ControllerObject> {
        self.facts.values().find_map(|fact| match fact {
            Object::Controller(controller) if controller.uid == uid => Some(controller),
            _ => None,
        })
    }

    /// The nodes.
    pub fn nodes(&self) -> Vec<&NodeObject> {
        let nodes = self.facts.values().filter_map(|fact| match fact {
            Object::Node(node) => Some(node),
            _ => None,
        });
        nodes.collect()
    }

    /// The first line that has this in it.
    pub fn line(&self, part: &str) -> Option<&str> {
        self.lines.iter().map(String::as_str).find(|line| line.contains(part))
    }
}

#[derive(Default)]
struct Shared {
    known: Mutex<Known>,
    news: Condvar,
    over: Mutex<bool>,
}

/// Sources at work.
pub struct Listener {
    shared: Arc<Shared>,
    refresh: RefreshRequest,
    status: Arc<Status>,
}

/// Starts the sources of this command line.
pub fn listen(arguments: &str) -> Listener {
    try_listen(arguments).unwrap_or_else(|error| panic!("{arguments}: {error}"))
}

/// Starts them, unless something is wrong with them beforehand.
pub fn try_listen(arguments: &str) -> Result<Listener, String> {
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
    let (of_lines, of_news) = (Arc::clone(&shared), Arc::clone(&shared));
    let say = move |line| {
        let (StatusMessage::Note(text) | StatusMessage::Error(text)) = line;
        of_lines
            .known
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .lines
            .push(text);
        of_lines.news.notify_all();
    };
    let tell = move |told: Vec<SourceUpdate>| {
        if *of_news.over.lock().unwrap() {
            return ControlFlow::Break(());
        }
        let mut known = of_news.known.lock().unwrap_or_else(PoisonError::into_inner);
        told.into_iter().for_each(|one| known.take(one));
        drop(known);
        of_news.news.notify_all();
        ControlFlow::Continue(())
    };
    let status = sources
        .start(NameSourceStatus::default(), say, tell)
        .map_err(|error| error.to_string())?;
    Ok(Listener {
        shared,
        refresh,
        status,
    })
}

impl Listener {
    /// Waits until this finds what it looks for.
    pub fn wait<T>(&self, what: &str, mut find: impl FnMut(&Known) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        let mut known = self.shared.known.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(found) = find(&known) {
                return found;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let pods: Vec<_> = known.pods().map(|pod| (&pod.namespace, &pod.name, &pod.ips)).collect();
                panic!(
                    "{what} did not come within {} s: {:?} {pods:?}",
                    PATIENCE.as_secs(),
                    known.lines
                );
            }
            known = self
                .shared
                .news
                .wait_timeout(known, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Waits for a line with this in it.
    pub fn line(&self, part: &str) -> String {
        self.wait(part, |known| known.line(part).map(str::to_owned))
    }

    /// All lines so far.
    pub fn lines(&self) -> Vec<String> {
        self.shared
            .known
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .lines
            .clone()
    }

    /// All lines so far but those about a source that answers late, which is the machine's affair.
    pub fn lines_without_delays(&self) -> Vec<String> {
        let is_delay = |line: &str| {
            line.starts_with("names come again from")
                || line.starts_with("warning: no updates from")
                    && (line.contains("no answer for") || line.contains("the answer stopped in the middle for"))
        };
        self.lines().into_iter().filter(|line| !is_delay(line)).collect()
    }

    /// An unknown container turned up.
    pub fn refresh(&self) {
        self.refresh.request();
    }

    /// Whether the run would end with status 1.
    pub fn has_failed(&self) -> bool {
        self.status.has_failed()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        *self.shared.over.lock().unwrap_or_else(PoisonError::into_inner) = true;
    }
}
