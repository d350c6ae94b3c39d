//! The run: wiring only. Each thread has one thing to wait for: the reader for the kernel, the writer for standard
//! output, the walker for the next interval, keys and screen (of a table in a terminal) for a person, and this one for signals and the end of `--duration`.

use std::future::pending;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::process::exit;
use std::sync::Arc;
use std::sync::mpsc::{channel, sync_channel};
use std::thread;

use anyhow::{Context, Result};
use rustix::system::uname;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio::time::sleep;

use super::explain;
use crate::capture::Target;
use crate::config::{CaptureConfig, Config, Output, Verbosity};
use crate::engine::{Engine, Selection};
use crate::filter::KernelFilter;
use crate::kernel::loader::{Kernel, Loaded, Options, StartError, Types, Walker, load};
use crate::kernel::preflight::Missing;
use crate::kernel::reader::{Control, Message, QUEUE, Queue, Reader};
use crate::kernel::scanner::{self, Scanner, Scans};
use crate::kernel::{measure_difference, monotonic_ns, preflight};
use crate::names::Annotator;
use crate::names::conntrack::Conntrack;
use crate::names::local::cgroup_tree::CgroupTree;
use crate::names::local::netns::PodNamespaces;
use crate::names::sources::{Sources, StatusMessage};
use crate::output::NameSourceStatus;
use crate::output::metrics::Metrics;
use crate::output::metrics::exposition::Exposition;
use crate::output::metrics::server::Server;
use crate::output::stderr::say;
use crate::output::term::{self, Jobs};
use crate::privileges::{self, Remaining};
use crate::record::{Header, RunInfo};
use crate::session::exit::Exit;
use crate::session::outputs::{self, Outputs};
use crate::session::pipeline::Pipeline;
use crate::session::writer::Writer;
use crate::track::clock::Clock;
use crate::track::{SETTLE_NS, Tracker};

/// Traces until told to stop.
pub fn run(config: &Config) -> Result<Exit> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start")?;
    // Before there is anything to be interrupted.
    let signals = {
        let _context = runtime.enter();
        Signals::new().context("cannot listen for signals")?
    };
    // Likewise: there is no point in tracing what cannot be served.
    let server = match &config.metrics {
        Some(metrics) => Some(Server::bind(metrics.address)?),
        None => None,
    };
    let started_ns = monotonic_ns();
    let loaded = match load_kernel(config) {
        Ok(loaded) => loaded,
        Err(error) => return Ok(cannot_trace(&error)),
    };
    let target = config.capture.as_ref();
    let target = target.map(|CaptureConfig { path, rotation }| Target::create(path, *rotation));
    let target = target.transpose()?;
    let conntrack = match config.sources.is_empty() {
        true => None,
        false => Conntrack::open().ok(),
    };
    let scanner = config.needs_updates().then(Scanner::start).transpose()?;
    // Before any other thread exists, which would keep what it has; and before anything is parsed that others wrote.
    let remaining = Remaining {
        names: !config.sources.is_empty(),
        conntrack: conntrack.is_some(),
        captures: config
            .capture
            .as_ref()
            .is_some_and(|capture| capture.rotation.is_some()),
    };
    privileges::keep_remaining(remaining).context("cannot give up privileges")?;
    let sources = Sources::prepare(&config.sources)?;
    let (kernel, walker, baseline) = match attach_kernel(loaded, config) {
        Ok(attached) => attached,
        Err(error) => return Ok(cannot_trace(&error)),
    };
    let began_ns = kernel.began_ns;
    let clock = Clock::new(measure_difference());
    let info = RunInfo {
        node: uname().nodename().to_string_lossy().into_owned(),
        kernel: uname().release().to_string_lossy().into_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    if config.verbosity > Verbosity::Quiet {
        say(&format!(
            "tracing every TCP connection of {} that closes; Ctrl-C ends it",
            info.node
        ));
    }
    if config.verbosity > Verbosity::Quiet
        && let Some(Missing { problem, remedy, .. }) = preflight::hidden_processes()
    {
        say(&format!("warning: {problem}\n  try: {remedy}"));
    }
    let metrics = config
        .metrics
        .as_ref()
        .map(|metrics| Metrics::new(metrics.series.clone(), &info));
    if let (Some(server), Some(metrics)) = (server, &metrics) {
        if config.verbosity > Verbosity::Quiet {
            say(&format!("serving metrics on http://{}/metrics", server.address));
        }
        server.serve(Exposition::new(metrics.values()))?;
    }
    if config.verbosity == Verbosity::Verbose {
        let ready = (monotonic_ns() - started_ns) / 1_000_000;
        say(&format!(
            "kernel {}, ring of {} KiB, ready in {ready} ms, of which the verifier {} ms",
            info.kernel,
            config.ring_bytes >> 10,
            kernel.verifier_ns / 1_000_000
        ));
    }

    let control = Arc::new(Control::new().context("cannot make an event descriptor")?);
    let (messages, queue) = sync_channel(QUEUE);
    let (spare, spares) = channel();
    if let Some(scanner) = scanner {
        scanner.run(Scans {
            walker,
            interval: config.interval,
            control: Arc::clone(&control),
            messages: messages.clone(),
        });
    }
    let names = messages.clone();
    let watched = if config.output == Output::None {
        None
    } else {
        Some(standard_output()?)
    };
    let reader = Reader::new(
        kernel,
        Arc::clone(&control),
        Queue {
            messages,
            spare: spares,
        },
        watched,
    );
    thread::Builder::new()
        .name("reader".to_owned())
        .spawn(move || reader.run(SETTLE_NS))
        .context("cannot start a thread")?;

    let selection = Selection {
        events: config.events,
        filter: config.filter.clone(),
        count: config.count,
    };
    let names_from = NameSourceStatus::default();
    let capture = target.map(|target| {
        let header = Header {
            info: info.clone(),
            start: clock.wall(began_ns),
            part: 0,
            closes_before: 0,
        };
        (target, header)
    });
    let Outputs { mut sinks, screen } = outputs::open(config, &info, &names_from, capture, {
        let control = Arc::clone(&control);
        move || control.stop()
    })?;
    let jobs = {
        let _context = runtime.enter();
        Jobs::of(screen).context("cannot listen for signals")?
    };
    let gauges = metrics.as_ref().map(Metrics::values);
    if let Some(metrics) = metrics {
        sinks.push(Box::new(metrics));
    }
    let engine = Engine::new(selection, sinks);
    let until_ns = config
        .duration
        .map(|duration| began_ns.saturating_add(duration.as_nanos() as u64));
    // An update without a change: the records that wait are looked at again.
    let wake = {
        let names = names.clone();
        move || _ = names.send(Message::Names(Vec::new()))
    };
    let cgroups = CgroupTree::mounted(wake.clone());
    let annotator = if config.sources.is_empty() {
        Annotator::without_sources(cgroups)
    } else {
        let refresh = sources.refresh_request();
        let refresh = Box::new(move || refresh.request());
        Annotator::new(cgroups, PodNamespaces::new(wake), conntrack, refresh)
    };
    let tracker = Tracker::new(began_ns, info.node.as_str().into());
    let mut pipeline = Pipeline::new(tracker, began_ns, until_ns, clock, engine)
        .with_names(annotator)
        .with_gauges(gauges);
    pipeline.baseline(&baseline).map_err(explain)?;
    let writer = Writer {
        pipeline,
        verbosity: config.verbosity,
        control: Arc::clone(&control),
        spare,
        lost_opens: 0,
    };
    let (ended, end) = oneshot::channel();
    thread::Builder::new()
        .name("writer".to_owned())
        // The receiver is dropped only when the process is about to end.
        .spawn(move || _ = ended.send(writer.write(&queue)))
        .context("cannot start a thread")?;
    let names_status = sources
        .start(names_from, say_of_sources(config.verbosity), move |one| {
            match names.send(Message::Names(one)) {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            }
        })
        .context("cannot start a thread")?;
    let exit = runtime.block_on(wait(config, &control, signals, jobs, end))?;
    Ok(match exit {
        Exit::Ok if names_status.has_failed() => Exit::Failed,
        exit => exit,
    })
}

fn say_of_sources(verbosity: Verbosity) -> impl Fn(StatusMessage) + Send {
    move |line| match line {
        StatusMessage::Note(text) if verbosity > Verbosity::Quiet => say(&text),
        StatusMessage::Note(_) => {}
        StatusMessage::Error(text) => say(&text),
    }
}

fn cannot_trace(error: &StartError) -> Exit {
    say(&preflight::explain(error));
    Exit::CannotTrace
}

fn load_kernel(config: &Config) -> Result<Loaded, StartError> {
    let KernelFilter {
        checks,
        prefilter,
        networks,
    } = KernelFilter::of(&config.filter);
    let options = Options {
        ring_bytes: config.ring_bytes,
        opens: config.needs_opens(),
        checks,
        prefilter,
        networks,
    };
    load(&Types::read()?, &options)
}

/// Also returns the counters of connections that were already open, as the baseline for metrics.
fn attach_kernel(loaded: Loaded, config: &Config) -> Result<(Kernel, Walker, Vec<u8>), StartError> {
    let (kernel, mut walker) = loaded.attach()?;
    // The first scan reports nothing.
    scanner::scan(&mut walker, None, |_| ControlFlow::Continue(()))?;
    let baseline = match config.needs_baseline() {
        true => scanner::standing(&mut walker)?,
        false => Vec::new(),
    };
    Ok((kernel, walker, baseline))
}

fn standard_output() -> Result<OwnedFd> {
    rustix::io::dup(rustix::stdio::stdout()).context("standard output is not open: give it a file, a pipe or /dev/null")
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
    user: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            user: signal(SignalKind::user_defined1())?,
        })
    }
}

/// Until the writer has ended, whatever ends it.
async fn wait(
    config: &Config,
    control: &Control,
    mut signals: Signals,
    mut jobs: Jobs,
    mut end: oneshot::Receiver<Result<Exit>>,
) -> Result<Exit> {
    let limit = async {
        match config.duration {
            Some(duration) => sleep(duration).await,
            None => pending().await,
        }
    };
    tokio::pin!(limit);
    let mut interrupted = false;
    let mut limited = false;
    loop {
        tokio::select! {
            ended = &mut end => return ended.context("the writing thread died")?,
            () = &mut limit, if !limited => {
                limited = true;
                control.stop();
            }
            _ = signals.user.recv() => control.summarize(),
            () = jobs.obey() => {}
            _ = signals.interrupt.recv() => end_or_leave(control, &mut interrupted),
            _ = signals.terminate.recv() => end_or_leave(control, &mut interrupted),
        }
    }
}

/// The first signal asks for an orderly end. At the second, whatever the first one waits for (a reader that does not
/// read) is not waited for.
fn end_or_leave(control: &Control, interrupted: &mut bool) {
    if *interrupted {
        term::leave();
        exit(Exit::Ok as i32);
    }
    *interrupted = true;
    control.stop();
}
