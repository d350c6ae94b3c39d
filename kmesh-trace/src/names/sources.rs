//! The sources of names, watched over: started, asked again, and spoken of when they fail. All in a thread of their own:
//! nothing of tracing waits for them.

pub mod cri;
pub mod kubeconfig;
pub mod kubelet;
pub mod podlogs;

mod body_limit;
mod ca_roots;
mod check;
mod error;
mod health;
mod watch;

use std::cell::RefCell;
use std::future::pending;
use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use futures_util::future::join_all;
use rustix::system::uname;
use tokio::sync::watch as channel;
use tokio::time::{Instant, sleep, sleep_until};

pub use self::check::check;
use self::error::Failure;
use self::health::Board;
pub use self::health::{Line, Verdict};
use super::objects::{self, file};
use super::update::{Change, Kind, Object, PodObject, Scope, SourceId, SourceUpdate};
use crate::config::{Origin, Source};
use crate::note::NamesFrom;
use crate::record::WallTime;

/// How much news goes in one message: its way is that of records, which are not to wait behind a long list.
const NEWS: usize = 64;
/// Between questions when nothing is amiss.
const EVERY: Duration = Duration::from_secs(30);
/// Between questions to a kubelet, however many unknown containers turn up.
const KUBELET_LEAST: Duration = Duration::from_secs(1);
/// Between questions to what is cheap to ask.
const LEAST: Duration = Duration::from_millis(100);
/// Between questions to what is not believed the first time.
const DOUBT: Duration = Duration::from_secs(2);
/// Between questions to what has failed: at first, and at most.
const BACK_OFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// Makes the local sources look again: a container turned up that none has told of.
#[derive(Clone, Debug)]
pub struct Nudge(Arc<channel::Sender<()>>);

impl Nudge {
    /// Costs little, and may come as often as it likes.
    pub fn nudge(&self) {
        self.0.send_replace(());
    }
}

/// Sources whose files have been read.
pub struct Sources {
    ready: Vec<Ready>,
    nudge: Nudge,
}

struct Ready {
    named: bool,
    label: String,
    /// The same in a word or two.
    word: &'static str,
    place: ReadyPlace,
}

enum ReadyPlace {
    Cri(cri::Source),
    Kubelet(kubelet::Settings),
    PodLogs,
    ApiServer {
        config: Box<kube::Config>,
        node: Option<String>,
    },
    File(Vec<Object>),
}

impl Sources {
    /// Reads the files that the command line names: what is wrong with one is known before tracing begins.
    pub fn prepare(sources: &[Source]) -> Result<Self> {
        let asked = sources
            .iter()
            .filter(|source| source.named || is_likely(&source.origin));
        let ready = asked.map(prepare).collect::<Result<_>>()?;
        let nudge = Nudge(Arc::new(channel::Sender::new(())));
        Ok(Self { ready, nudge })
    }

    /// Makes them look again.
    pub fn nudge(&self) -> Nudge {
        self.nudge.clone()
    }

    /// Asks them from now on. What they tell goes to `tell`, which may wait, until that breaks it off; what there is to say
    /// of them goes to `say`, and which of them answer to `names_from`.
    pub fn start(
        self,
        names_from: NamesFrom,
        say: impl Fn(Line) + Send + 'static,
        tell: impl Fn(Vec<SourceUpdate>) -> ControlFlow<()> + Send + 'static,
    ) -> io::Result<Arc<Verdict>> {
        let verdict = Arc::new(Verdict::default());
        let of_thread = Arc::clone(&verdict);
        if !self.ready.is_empty() {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            thread::Builder::new()
                .name("names".to_owned())
                .spawn(move || runtime.block_on(self.run(names_from, say, tell, of_thread)))?;
        }
        Ok(verdict)
    }

    async fn run(
        self,
        names_from: NamesFrom,
        say: impl Fn(Line) + 'static,
        tell: impl Fn(Vec<SourceUpdate>) -> ControlFlow<()> + 'static,
        verdict: Arc<Verdict>,
    ) {
        let sources = self
            .ready
            .iter()
            .map(|ready| (ready.label.clone(), ready.word, ready.named));
        let board = Board::new(sources.collect(), verdict, names_from, Instant::now().into_std());
        let shared = Rc::new(Shared {
            board: RefCell::new(board),
            say: Box::new(say),
            tell: Box::new(tell),
        });
        let count = self.ready.len();
        let mut sources: Vec<Pin<Box<dyn Future<Output = ()>>>> = Vec::new();
        for (place, ready) in self.ready.into_iter().enumerate() {
            let voice = Voice {
                shared: Rc::clone(&shared),
                place,
                id: SourceId(place as u8),
                // Jobs and ReplicaSets are one kind: each list of them is a source's of its own.
                other_id: SourceId((count + place) as u8),
            };
            sources.push(Box::pin(run(ready.place, voice, self.nudge.0.subscribe())));
        }
        sources.push(Box::pin(deadlines(shared)));
        join_all(sources).await;
    }
}

/// Speaks for itself at the times at which sources should have answered.
async fn deadlines(shared: Rc<Shared>) {
    loop {
        let next = shared.board.borrow().next_deadline();
        match next {
            Some(at) => sleep_until(at.into()).await,
            None => return,
        }
        let lines = shared.board.borrow_mut().at(Instant::now().into_std());
        lines.into_iter().for_each(|line| (shared.say)(line));
    }
}

struct Shared {
    board: RefCell<Board>,
    say: Box<dyn Fn(Line)>,
    tell: Box<dyn Fn(Vec<SourceUpdate>) -> ControlFlow<()>>,
}

/// Through which one source tells and is told of.
struct Voice {
    shared: Rc<Shared>,
    place: usize,
    id: SourceId,
    other_id: SourceId,
}

impl Voice {
    /// What was so at that time.
    fn tell(&self, source: SourceId, at: WallTime, news: impl IntoIterator<Item = Change>) -> ControlFlow<()> {
        let told = news
            .into_iter()
            .map(|news| SourceUpdate {
                source,
                at,
                change: news,
            })
            .collect();
        (self.shared.tell)(told)
    }

    /// Whole lists of these kinds, and all that is in them.
    fn list(&self, at: WallTime, kinds: &[Kind], facts: impl IntoIterator<Item = Object>) -> ControlFlow<()> {
        let begins = kinds.iter().copied().map(Scope::All).map(Change::ListStart);
        let ends = kinds.iter().copied().map(Scope::All).map(Change::ListEnd);
        let mut news = begins
            .chain(facts.into_iter().map(Change::Upsert))
            .chain(ends)
            .peekable();
        while news.peek().is_some() {
            self.tell(self.id, at, news.by_ref().take(NEWS))?;
        }
        ControlFlow::Continue(())
    }

    fn answered(&self) {
        let lines = self.shared.board.borrow_mut().answered(self.place);
        lines.into_iter().for_each(|line| self.say(line));
    }

    fn failed(&self, why: Failure) {
        let lines = (self.shared.board.borrow_mut()).failed(self.place, why, Instant::now().into_std());
        lines.into_iter().for_each(|line| self.say(line));
    }

    fn is_answering(&self) -> bool {
        self.shared.board.borrow().is_answering(self.place)
    }

    fn say(&self, line: Line) {
        (self.shared.say)(line);
    }
}

/// A kubelet is guessed only where something shows that there is one: each question is a connection, and traced as such.
fn is_likely(origin: &Origin) -> bool {
    !matches!(origin, Origin::Kubelet(_)) || kubelet::shows()
}

fn prepare(source: &Source) -> Result<Ready> {
    let (label, place) = match &source.origin {
        Origin::Cri(sockets) => {
            let label = match &sockets[..] {
                [socket] => format!("the container runtime at {}", socket.display()),
                _ => "the container runtime".to_owned(),
            };
            (label, ReadyPlace::Cri(cri::Source::new(sockets)))
        }
        Origin::Kubelet(kubelet) => {
            let label = format!("the kubelet at {}", kubelet.url);
            (
                label,
                ReadyPlace::Kubelet(kubelet::Settings::new(kubelet, &node_name())?),
            )
        }
        Origin::PodLogs => (format!("the log folders in {}", podlogs::FOLDER), ReadyPlace::PodLogs),
        Origin::ApiServer(api_server) => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .build()
                .context("cannot start")?;
            let config = Box::new(runtime.block_on(kubeconfig::settings(api_server))?);
            let label = format!("the API server at {}", kubeconfig::url(&config));
            let node = api_server.this_node.then(node_name);
            (label, ReadyPlace::ApiServer { config, node })
        }
        Origin::File(path) => (path.display().to_string(), ReadyPlace::File(file::read(path)?)),
    };
    Ok(Ready {
        named: source.named,
        label,
        word: source.origin.word(),
        place,
    })
}

/// As the cluster knows this node: what a pod is told, or else what a kubelet takes by default.
fn node_name() -> String {
    let told = std::env::var("NODE_NAME").ok().filter(|name| !name.is_empty());
    told.unwrap_or_else(|| uname().nodename().to_string_lossy().to_lowercase())
}

async fn run(place: ReadyPlace, voice: Voice, nudged: channel::Receiver<()>) {
    match place {
        ReadyPlace::Cri(mut source) => poll(&voice, nudged, LEAST, &mut source).await,
        ReadyPlace::Kubelet(settings) => match settings.source() {
            Ok(mut source) => poll(&voice, nudged, KUBELET_LEAST, &mut source).await,
            Err(why) => voice.failed(why),
        },
        ReadyPlace::PodLogs => poll(&voice, nudged, LEAST, &mut Folders).await,
        ReadyPlace::ApiServer { config, node } => watch::run(&voice, *config, node).await,
        ReadyPlace::File(facts) => _ = tell_file(&voice, facts),
    }
}

fn tell_file(voice: &Voice, facts: Vec<Object>) -> ControlFlow<()> {
    let mut kinds = vec![Kind::Pods];
    for fact in &facts {
        let kind = objects::kind_of(fact);
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    voice.list(now(), &kinds, facts)?;
    voice.answered();
    ControlFlow::Continue(())
}

/// What is asked for this node's pods time and again.
trait Local {
    /// None: ask once more.
    async fn pods(&mut self) -> Result<Option<Vec<PodObject>>, Failure>;

    /// Until there is a reason to ask again.
    async fn event(&mut self) {
        pending().await
    }
}

impl Local for cri::Source {
    async fn pods(&mut self) -> Result<Option<Vec<PodObject>>, Failure> {
        cri::Source::pods(self).await.map(Some)
    }

    async fn event(&mut self) {
        cri::Source::event(self).await
    }
}

impl Local for kubelet::Source {
    async fn pods(&mut self) -> Result<Option<Vec<PodObject>>, Failure> {
        kubelet::Source::pods(self).await
    }
}

struct Folders;

impl Local for Folders {
    async fn pods(&mut self) -> Result<Option<Vec<PodObject>>, Failure> {
        let pods = podlogs::list(Path::new(podlogs::FOLDER));
        pods.map(Some).map_err(|error| Failure::new(error::io(&error)))
    }
}

async fn poll(voice: &Voice, mut nudged: channel::Receiver<()>, least: Duration, source: &mut impl Local) {
    let mut back_off = BACK_OFF.0;
    loop {
        nudged.mark_unchanged();
        let (asked, at) = (Instant::now(), now());
        match source.pods().await {
            Ok(None) => sleep(DOUBT).await,
            Ok(Some(pods)) => {
                if voice
                    .list(at, &[Kind::Pods], pods.into_iter().map(Object::Pod))
                    .is_break()
                {
                    return;
                }
                voice.answered();
                back_off = BACK_OFF.0;
                sleep_until(asked + least).await;
                tokio::select! {
                    () = sleep_until(asked + EVERY) => {}
                    () = source.event() => {}
                    // Who nudges lives as long as the process.
                    _ = nudged.changed() => {}
                }
            }
            Err(why) => {
                voice.failed(why);
                sleep(back_off).await;
                back_off = (back_off * 2).min(BACK_OFF.1);
            }
        }
    }
}

/// The wall clock.
fn now() -> WallTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    WallTime(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}
