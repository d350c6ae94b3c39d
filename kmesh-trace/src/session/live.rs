//! The live session: opens, attaches and connects all stages. `docs/architecture.md` describes the threads.

use std::env;
use std::future::pending;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::sync::{Arc, Once};
use std::thread;

use anyhow::{Context, Result};
use rustix::system::uname;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio::time::sleep;

use super::explain;
use crate::capture::Target;
use crate::clocks::{measure_difference, monotonic_ns};
use crate::config::{Config, Output, Verbosity};
use crate::engine::{Engine, Selection};
use crate::filter::KernelFilter;
use crate::findings::Abilities;
use crate::kernel::loader::{KernelTypes, LoadedPrograms, Options, Programs, ReasonCounts, ScanMode, StartError, load};
use crate::kernel::message::Message;
use crate::kernel::preflight;
use crate::kernel::preflight::Missing;
use crate::kernel::reader::{Control, QUEUE_CAPACITY, Queue, Reader};
use crate::kernel::scanner::{FIRST_SCAN_IS_LATE, ScanTask, Scanner};
use crate::names::Annotator;
use crate::names::conntrack::Conntrack;
use crate::names::local::cgroup_tree::CgroupTree;
use crate::names::local::netns::PodNamespaces;
use crate::names::sources::{Sources, Status, StatusMessage};
use crate::node;
use crate::output::NameSourceStatus;
use crate::output::metrics::Metrics;
use crate::output::metrics::server::Server;
use crate::output::stderr::{status, warn};
use crate::output::table::view::UiCommand;
use crate::output::term::JobControl;
use crate::own_connections::OwnConnections;
use crate::privileges::{self, Remaining};
use crate::record::{Header, RunInfo};
use crate::session::exit::{Exit, of_names};
use crate::session::outputs::{self, Outputs};
use crate::session::pipeline::Pipeline;
use crate::session::signals::EndSignals;
use crate::session::writer::Writer;
use crate::session::{event_loop, print_status};
use crate::track::clock::Clock;
use crate::track::{SETTLE_NS, Tracker};

/// Traces until a signal, a limit or the reader of standard output ends the run.
pub fn run(config: &Config) -> Result<Exit> {
    run_with(config, || {})
}

/// Traces as [`run`] does, and calls `on_start` when all programs are attached.
pub fn run_with(config: &Config, on_start: impl FnOnce()) -> Result<Exit> {
    let runtime = event_loop()?;
    // From here on, a signal stops the run in order.
    let signals = {
        let _context = runtime.enter();
        Signals::new().context("cannot listen for signals")?
    };
    let started_ns = monotonic_ns();
    let (loaded, opened) = match open(config)? {
        Ok(opened) => opened,
        Err(error) => return Ok(cannot_trace(&error)),
    };
    let sources = Sources::prepare(&config.sources)?;
    let scan_mode = loaded.scan_mode();
    let attached = match attach(loaded, config, &opened.scanner) {
        Ok(attached) => attached,
        Err(error) => return Ok(cannot_trace(&error)),
    };
    let info = run_info();
    report_start(config, &info, scan_mode);
    on_start();
    let metrics = outputs::serve_metrics(config, &info, opened.server)?;
    if config.verbosity == Verbosity::Verbose {
        report_details(config, &info, &attached.programs, started_ns);
    }

    let control = Arc::new(Control::new().context("cannot make an event descriptor")?);
    let began_ns = attached.programs.began_ns;
    let clock = Clock::new(measure_difference());
    let (messages, queue) = sync_channel(QUEUE_CAPACITY);
    let (spare, spares) = channel();
    // Without further scans, the scanner still holds its descriptors, so that `bpftool` shows the programs and maps.
    let _idle_scanner = match config.needs_updates() {
        true => {
            opened.scanner.run(ScanTask {
                interval: config.interval,
                scans_at_stop: config.rollup.is_some() || config.findings.is_some(),
                control: Arc::clone(&control),
                messages: messages.clone(),
            });
            None
        }
        false => Some(opened.scanner),
    };
    let reader_queue = Queue {
        messages: messages.clone(),
        spare: spares,
    };
    start_reader(config, attached.programs, Arc::clone(&control), reader_queue)?;

    let status = NameSourceStatus::default();
    let capture = opened
        .target
        .map(|target| (target, Header::new(info.clone(), clock.wall(began_ns))));
    let Outputs { mut sinks, screen } = outputs::open(config, &info, &status, capture, attached.abilities, {
        let control = Arc::clone(&control);
        move |command| {
            if *command == UiCommand::Quit {
                control.stop();
            }
        }
    })?;
    let jobs = {
        let _context = runtime.enter();
        JobControl::new(screen).context("cannot listen for signals")?
    };
    let gauges = metrics.as_ref().map(Metrics::values);
    if let Some(metrics) = metrics {
        sinks.push(Box::new(metrics));
    }
    let until_ns = config
        .duration
        .map(|duration| began_ns.saturating_add(duration.as_nanos() as u64));
    let reason_counts = attached.reason_counts;
    let reset_reasons = reason_counts.reasons.reset.clone();
    let tracker = Tracker::new(began_ns, info.node.as_str().into()).with_reset_reasons(reset_reasons);
    let engine = Engine::new(Selection::of(config), sinks);
    let mut pipeline = Pipeline::new(tracker, began_ns, until_ns, clock, engine)
        .with_names(annotator(config, &sources, opened.conntrack, &messages))
        .without_own_connections(own_connections(config))
        .with_reason_counts(reason_counts)
        .with_gauges(gauges);
    pipeline.baseline(&attached.baseline).map_err(explain)?;
    let writer = Writer {
        pipeline,
        verbosity: config.verbosity,
        control: Arc::clone(&control),
        spare,
        lost_opens: 0,
    };
    let end = start_writer(writer, queue)?;
    let names = start_sources(config, sources, status, messages)?;
    let exit = runtime.block_on(wait(config, &control, signals, jobs, end))?;
    Ok(match exit {
        Exit::Ok => of_names(&names),
        exit => exit,
    })
}

/// The files, sockets and threads that need privileges to open.
struct Opened {
    server: Option<Server>,
    target: Option<Target>,
    conntrack: Option<Conntrack>,
    scanner: Scanner,
}

/// Opens everything that needs privileges, and then gives the privileges up. The inner error is the loader's.
fn open(config: &Config) -> Result<Result<(LoadedPrograms, Opened), StartError>> {
    let server = outputs::bind_server(config)?;
    let loaded = match load_kernel(config) {
        Ok(loaded) => loaded,
        Err(error) => return Ok(Err(error)),
    };
    let target = outputs::create_target(config)?;
    let conntrack = match config.sources.is_empty() {
        true => None,
        false => Conntrack::open().ok(),
    };
    // A scanner that enters other network namespaces retains privileges for that.
    let enters_namespaces = config.needs_updates() || loaded.scan_mode() == ScanMode::Namespaces;
    let privileged = enters_namespaces.then(Scanner::start).transpose()?;
    // No other thread exists yet, which would retain its privileges. No file of another user has been parsed yet.
    let remaining = Remaining {
        names: !config.sources.is_empty(),
        conntrack: conntrack.is_some(),
        rotation: config.is_rotated(),
    };
    privileges::limit_to_remaining(remaining).context("cannot give up privileges")?;
    let opened = Opened {
        server,
        target,
        conntrack,
        scanner: match privileged {
            Some(scanner) => scanner,
            None => Scanner::start()?,
        },
    };
    Ok(Ok((loaded, opened)))
}

struct Attached {
    programs: Programs,
    reason_counts: ReasonCounts,
    abilities: Abilities,
    /// The counters of the connections that were already open; empty if no output needs them.
    baseline: Vec<u8>,
}

fn attach(loaded: LoadedPrograms, config: &Config, scanner: &Scanner) -> Result<Attached, StartError> {
    let (programs, scan_programs, reason_counts) = loaded.attach()?;
    let baseline = scanner.first_scan(scan_programs, config.needs_baseline())?;
    if baseline.is_none() {
        warn(FIRST_SCAN_IS_LATE);
    }
    Ok(Attached {
        abilities: Abilities {
            rejects: Some(reason_counts.reasons.has_resets()),
            listeners: Some(config.needs_listeners()),
        },
        programs,
        reason_counts,
        baseline: baseline.unwrap_or_default(),
    })
}

fn run_info() -> RunInfo {
    // In a pod, the host name is the pod's.
    let node = env::var("NODE_NAME").ok().filter(|name| !name.is_empty());
    RunInfo {
        node: node.unwrap_or_else(|| uname().nodename().to_string_lossy().into_owned()),
        kernel: uname().release().to_string_lossy().into_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

/// Prints the start message, and a warning if some processes or sockets are hidden from the tracer.
fn report_start(config: &Config, info: &RunInfo, mode: ScanMode) {
    if config.verbosity == Verbosity::Quiet {
        return;
    }
    let hint = match config.is_default_output && config.output == Output::Short {
        true => "; -o log prints the whole access log",
        false => "",
    };
    match config.duration.filter(|_| config.findings.is_some()) {
        Some(duration) => status(&format!(
            "watching the TCP connections of {} for {}; Ctrl-C reports early",
            info.node,
            humantime::format_duration(duration)
        )),
        None => status(&format!(
            "tracing every TCP connection of {} that closes; Ctrl-C ends it{hint}",
            info.node
        )),
    }
    if config.filter.failed && config.prints_only_closes() {
        status("an attempt that hangs is printed when it ends; --events close,update also prints it while it waits");
    }
    let hidden = preflight::hidden_processes().or_else(|| preflight::hidden_namespaces(mode));
    if let Some(Missing { problem, remedy, .. }) = hidden {
        warn(&format!("{problem}\n  try: {remedy}"));
    }
}

fn report_details(config: &Config, info: &RunInfo, programs: &Programs, started_ns: u64) {
    let ready_ms = (monotonic_ns() - started_ns) / 1_000_000;
    status(&format!(
        "kernel {}, ring of {} KiB, ready in {ready_ms} ms, of which the verifier {} ms",
        info.kernel,
        config.ring_bytes >> 10,
        programs.verifier_ns / 1_000_000
    ));
}

/// Starts the thread that drains the ring.
fn start_reader(config: &Config, programs: Programs, control: Arc<Control>, queue: Queue) -> Result<()> {
    let watched = match config.output {
        Output::None => None,
        _ => Some(standard_output()?),
    };
    let reader = Reader::new(programs, control, queue, watched);
    thread::Builder::new()
        .name("reader".to_owned())
        .spawn(move || reader.run(SETTLE_NS))
        .context("cannot start the reader thread")?;
    Ok(())
}

/// Starts the writer thread. The receiver gets its result.
fn start_writer(writer: Writer, queue: Receiver<Message>) -> Result<oneshot::Receiver<Result<Exit>>> {
    let (ended, end) = oneshot::channel();
    thread::Builder::new()
        .name("writer".to_owned())
        // The receiver is dropped only when the process is about to end.
        .spawn(move || _ = ended.send(writer.write(&queue)))
        .context("cannot start the writer thread")?;
    Ok(end)
}

/// Starts the threads of the name sources, which send their updates to the writer.
fn start_sources(
    config: &Config,
    sources: Sources,
    status: NameSourceStatus,
    messages: SyncSender<Message>,
) -> Result<Arc<Status>> {
    let emit = source_status(config.verbosity, status.clone(), messages.clone());
    let send = move |updates| match messages.send(Message::Names(updates)) {
        Ok(()) => ControlFlow::Continue(()),
        Err(_) => ControlFlow::Break(()),
    };
    sources
        .start(status, emit, send)
        .context("cannot start the threads of the name sources")
}

/// Returns the stage that adds names. An empty update wakes the writer when pending records should be annotated again.
fn annotator(
    config: &Config,
    sources: &Sources,
    conntrack: Option<Conntrack>,
    messages: &SyncSender<Message>,
) -> Annotator {
    let messages = messages.clone();
    let wake = move || _ = messages.send(Message::Names(Vec::new()));
    let cgroups = CgroupTree::mounted(wake.clone());
    if config.sources.is_empty() {
        return Annotator::without_sources(cgroups);
    }
    let refresh = sources.refresh_request();
    let refresh = Box::new(move || refresh.request());
    Annotator::new(cgroups, PodNamespaces::new(wake), conntrack, refresh)
}

/// Returns how to recognize the connections of this process, unless `--include-self` keeps them.
fn own_connections(config: &Config) -> Option<OwnConnections> {
    let netns = std::fs::metadata("/proc/self/ns/net").ok();
    (!config.include_self).then(|| OwnConnections {
        pid: node::sees_all_processes().then(std::process::id),
        // The kernel's inode numbers of namespaces have 32 bits.
        netns: netns.map(|file| file.ino() as u32),
    })
}

/// Returns a function that prints the status messages of name sources. When no source is awaited any more, the function
/// tells the writer.
fn source_status(
    verbosity: Verbosity,
    names: NameSourceStatus,
    messages: SyncSender<Message>,
) -> impl Fn(StatusMessage) + Send {
    let settled = Once::new();
    move |message| {
        print_status(&message, verbosity);
        if !names.is_any_awaited() {
            // The send fails only at the end of the run.
            settled.call_once(|| _ = messages.send(Message::NamesSettled));
        }
    }
}

fn cannot_trace(error: &StartError) -> Exit {
    status(&preflight::explain(error));
    Exit::CannotTrace
}

fn load_kernel(config: &Config) -> Result<LoadedPrograms, StartError> {
    let KernelFilter {
        checks,
        rules,
        networks,
    } = KernelFilter::of(&config.filter);
    let types = KernelTypes::read()?;
    let options = Options {
        ring_bytes: config.ring_bytes,
        opens: config.needs_opens(),
        checks,
        rules,
        networks,
        // Findings and metrics do without what the kernel cannot; a flag does not.
        drops: config.drops || config.findings.is_some() && types.reasons.has_drops(),
        turns: config.turns,
        rejects: match config.findings.is_some() || config.metrics.is_some() && !config.events.reject {
            true => types.reasons.has_resets(),
            false => config.events.reject,
        },
        listeners: config.needs_listeners(),
    };
    load(&types, &options)
}

fn standard_output() -> Result<OwnedFd> {
    rustix::io::dup(rustix::stdio::stdout()).context("standard output is not open: give it a file, a pipe or /dev/null")
}

struct Signals {
    end: EndSignals,
    user: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            end: EndSignals::new()?,
            user: signal(SignalKind::user_defined1())?,
        })
    }
}

/// Handles signals and `--duration` until the writer thread ends, and returns the exit status.
async fn wait(
    config: &Config,
    control: &Control,
    mut signals: Signals,
    mut jobs: JobControl,
    mut end: oneshot::Receiver<Result<Exit>>,
) -> Result<Exit> {
    let limit = async {
        match config.duration {
            Some(duration) => sleep(duration).await,
            None => pending().await,
        }
    };
    tokio::pin!(limit);
    let mut is_limit_reached = false;
    loop {
        tokio::select! {
            ended = &mut end => return ended.context("the writer thread panicked")?,
            () = &mut limit, if !is_limit_reached => {
                is_limit_reached = true;
                control.stop();
            }
            _ = signals.user.recv() => control.request_summary(),
            () = jobs.handle_next() => {}
            () = signals.end.next() => control.stop(),
        }
    }
}
