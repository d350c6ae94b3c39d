//! Tests the table in a real terminal. tmux is the terminal: the tests type keys into it and read its screen.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::mpsc::channel;
use std::thread;

use kmesh_trace::config::parse_prompt_filter;
use kmesh_trace::output::table::history::SharedHistory;
use kmesh_trace::output::table::view::ViewOptions;
use kmesh_trace::output::term;
use kmesh_trace::rollup::Key;
use kmesh_trace::rollup::Sort;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::Topic;
use crate::support::probe::Need;
use crate::support::scrape::scrape;
use crate::support::sock::{ClosedPort, IpVersion, connect_errno, exchange, free_port, listen, pair_with, wait_until};
use crate::support::terminal::Terminal;
use crate::support::tracer::binary;
use crate::support::traffic::make_traffic_to;
use crate::support::{bpf, is_small_vm, net, write_scratch_file};

/// Returns the scenarios of the table in a terminal.
pub fn topic() -> Topic {
    Topic::new("terminal")
        .standalone("sizes_and_keys", &[Need::Tmux], sizes_and_keys)
        .standalone(
            "windows_totals_and_failures",
            &[Need::Tmux],
            windows_totals_and_failures,
        )
        .standalone("filter_prompt", &[Need::Tmux], filter_prompt)
        .standalone(
            "notice_leaves_the_last_line",
            &[Need::Tmux],
            notice_leaves_the_last_line,
        )
        .standalone("replay_steps_back", &[Need::Tmux], replay_steps_back)
        .standalone(
            "quitting_restores_the_screen",
            &[Need::Tmux],
            quitting_restores_the_screen,
        )
        .standalone("panic_restores_the_screen", &[Need::Tmux], panic_restores_the_screen)
        .standalone("suspended_and_resumed", &[Need::Tmux], suspended_and_resumed)
        .standalone(
            "stopped_terminal_loses_no_record",
            &[Need::Tmux],
            stopped_terminal_loses_no_record,
        )
        .standalone(
            "closed_terminal_ends_the_tool",
            &[Need::Tmux],
            closed_terminal_ends_the_tool,
        )
}

/// A stopped process. Dropping this resumes the process, so that it can exit even if the test fails.
struct Stopped(Pid);

impl Stopped {
    fn new(process: Pid) -> Self {
        kill(process, Signal::SIGSTOP).unwrap();
        Self(process)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        _ = kill(self.0, Signal::SIGCONT);
    }
}

/// Returns the address at which a tracer with `--metrics PORT` serves its metrics.
fn local(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

fn sizes_and_keys() {
    // A short address, so that other columns fit on the screen.
    let [first, second] = [(); 2].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
    let ports = [&first, &second].map(|listener| listener.local_addr().unwrap().port());
    let terminal = Terminal::open(80, 24);
    let metrics = free_port(IpVersion::V4);
    terminal.table(&format!(
        "--by ip,port --interval 300ms --metrics {metrics} --port {},{}",
        ports[0], ports[1]
    ));
    let stays = [pair_with(&first), pair_with(&second)];
    let row = |port: u16| format!("127.0.0.1:{port}");
    let both = |screen: &str| ports.iter().all(|&port| screen.contains(&row(port)));
    let narrow = terminal.wait("both groups", both);
    assert!(
        narrow.contains("OPEN") && narrow.contains("FAILED") && !narrow.contains("SRTT"),
        "{narrow}"
    );
    // A wider terminal shows more columns. At 80 columns again, it shows the same columns as before.
    terminal.resize(120, 40);
    terminal.wait("120 columns", |screen| {
        screen.contains("P95") && both(screen) && !screen.contains("RETRANS")
    });
    terminal.resize(200, 60);
    terminal.wait("200 columns", |screen| {
        screen.contains("REASON") && screen.contains("SRTT") && both(screen)
    });
    terminal.resize(240, 60);
    terminal.wait("240 columns", |screen| screen.contains("RETRANS") && both(screen));
    terminal.resize(80, 24);
    terminal.wait("80 columns", |screen| !screen.contains("P95") && both(screen));
    // The table shows the rate of an open connection. A rate covers one interval, which may end before the test reads
    // the screen, so the test keeps sending.
    terminal.wait("a rate", |screen| {
        exchange(&stays[0], 50_000, 100);
        screen
            .lines()
            .any(|line| line.contains(&row(ports[0])) && line.contains("iB/s"))
    });
    // A paused screen does not change while connections close and three socket scans report more bytes.
    terminal.keys(&["p"]);
    let paused = terminal.wait("the pause", |screen| screen.contains("PAUSED"));
    let counted = |name: &str| scrape(local(metrics)).sum(name, &[]);
    let closed = counted("kmesh_trace_outcomes_total");
    make_traffic_to(&first, 50);
    wait_until("the closes are counted", || {
        counted("kmesh_trace_outcomes_total") >= closed + 100.0
    });
    for _ in 0..3 {
        let before = counted("kmesh_tcp_workload_sent_bytes_total");
        exchange(&stays[0], 50_000, 100);
        wait_until("the bytes are counted", || {
            counted("kmesh_tcp_workload_sent_bytes_total") >= before + 50_100.0
        });
    }
    // The last line shows messages. On a slow machine, one reports a longer update interval.
    let above = |screen: &str| screen.lines().rev().skip(1).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(above(&terminal.screen()), above(&paused));
    terminal.keys(&["p"]);
    terminal.wait("the table without a pause", |screen| !screen.contains("PAUSED"));
    // Type a wrong filter, correct it, and remove it.
    terminal.keys(&["/"]);
    terminal.text(&format!("--port {}x", ports[1]));
    terminal.keys(&["Enter"]);
    terminal.wait("the error message", |screen| screen.contains("--port"));
    terminal.keys(&["BSpace", "Enter"]);
    terminal.wait("one group", |screen| {
        screen.contains(&row(ports[1])) && !screen.contains(&row(ports[0])) && screen.contains("only --port")
    });
    terminal.keys(&["/", "C-u", "Enter"]);
    terminal.wait("both again", both);
    // Change the order.
    terminal.keys(&["s"]);
    terminal.wait("another order", |screen| {
        screen.contains("sorted by group") && screen.contains("CLIENT▲")
    });
    // Open and close the help.
    terminal.keys(&["?"]);
    terminal.wait("help", |screen| {
        screen.contains("PgUp, PgDn") && screen.contains("*:9999: any server, port 9999")
    });
    terminal.keys(&["Escape"]);
    terminal.wait("no help", both);
    // Open and close the list of a group's connections.
    let client = format!(":{}", stays[0].truth.src.port());
    terminal.keys(&["Home", "Enter"]);
    terminal.wait("connections", |screen| {
        screen.contains("connections of") && screen.contains("127.0.0.1:")
    });
    terminal.keys(&["Escape"]);
    terminal.wait("groups", |screen| !screen.contains("connections of") && both(screen));
    // `g` changes the grouping. 11 presses from `ip,port` reach `connection`.
    for _ in 0..11 {
        terminal.keys(&["g"]);
    }
    terminal.wait("by connection", |screen| {
        screen.contains("by connection") && screen.contains(&client[..])
    });
    terminal.keys(&["q"]);
    terminal.is_restored();
    drop(stays);
}

/// One connection stays open, and one attempt waits until it fails.
fn windows_totals_and_failures() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let closed = ClosedPort::new();
    let terminal = Terminal::open(120, 40);
    terminal.table(&format!("--by ip,port --interval 2s --port {port},{}", closed.number()));
    let stays = pair_with(&listener);
    let (row, failed) = (format!("127.0.0.1:{port}"), closed.at(IpVersion::V4).to_string());
    terminal.wait("the group", |screen| screen.contains(&row));
    connect_errno(&IpVersion::V4.socket(), closed.at(IpVersion::V4));
    let recorded = terminal.record();
    terminal.wait("the failure", |_| recorded.contains("1 refused by peer"));
    terminal.wait("the failure of a quiet group", |screen| {
        screen
            .lines()
            .any(|line| line.contains(&failed) && line.contains("s ago"))
    });
    terminal.keys(&["f"]);
    terminal.wait("failures only", |screen| {
        screen.contains("failures only") && screen.contains(&failed) && !screen.contains(&row)
    });
    terminal.keys(&["f", "["]);
    terminal.wait("a window before", |screen| screen.contains("PAUSED at window"));
    terminal.keys(&["[", "]", "p"]);
    terminal.wait("the latest window", |screen| !screen.contains("PAUSED"));
    terminal.keys(&["t"]);
    terminal.wait("the totals", |screen| {
        let has_failed = |line: &str| line.contains(&failed) && line.contains("1 refused by peer");
        screen.contains("totals since") && screen.lines().any(has_failed) && screen.contains(&row)
    });
    terminal.keys(&["t"]);
    terminal.wait("the last window", |screen| !screen.contains("totals since"));
    terminal.keys(&["q"]);
    let screen = terminal.wait("the last window after the end", |screen| screen.contains("closed on"));
    assert!(screen.contains("CLIENT") && screen.contains(&row), "{screen}");
    terminal.is_restored();
    drop(stays);
}

fn filter_prompt() {
    let listeners = [(); 2].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
    let ports = listeners
        .each_ref()
        .map(|listener| listener.local_addr().unwrap().port());
    let stays = listeners.each_ref().map(pair_with);
    let terminal = Terminal::open(80, 24);
    terminal.table(&format!(
        "--by ip,port --interval 300ms --port {},{}",
        ports[0], ports[1]
    ));
    let row = |port: u16| format!("127.0.0.1:{port}");
    let both = |screen: &str| ports.iter().all(|&port| screen.contains(&row(port)));
    terminal.wait("both groups", both);
    // The errors about a word that is no flag and about an open quote say what to type.
    terminal.text("/shop");
    terminal.keys(&["Enter"]);
    terminal.wait("the hint", |screen| {
        screen.contains("filters are flags, such as -n shop")
    });
    terminal.keys(&["C-w"]);
    terminal.text(&format!("--port '{}", ports[1]));
    terminal.keys(&["Enter"]);
    terminal.wait("the open quote", |screen| screen.contains("the quote ' is not closed"));
    // Ctrl-C closes the prompt, not the program.
    terminal.keys(&["C-c"]);
    terminal.wait("the keys", |screen| screen.contains("q quit"));
    // Move the cursor within the line, insert text and delete text.
    terminal.text(&format!("/--comm 'nosuch*' --port '{}'", ports[1]));
    terminal.keys(&["Home"]);
    for _ in 0.."--comm ".len() {
        terminal.keys(&["Right"]);
    }
    terminal.text("'*'");
    for _ in 0.."'nosuch*'".len() {
        terminal.keys(&["DC"]);
    }
    terminal.keys(&["Enter"]);
    terminal.wait("one group", |screen| {
        screen.contains(&row(ports[1])) && !screen.contains(&row(ports[0])) && screen.contains("only --comm")
    });
    terminal.keys(&["/", "C-u", "Enter"]);
    terminal.wait("both again", both);
    terminal.keys(&["/", "Up"]);
    terminal.wait("the history", |screen| screen.contains("filter: --comm"));
    terminal.keys(&["Escape"]);
    terminal.wait("the keys", |screen| screen.contains("q quit"));
    terminal.keys(&["q"]);
    terminal.is_restored();
    drop(stays);
}

fn notice_leaves_the_last_line() {
    let terminal = Terminal::open(80, 24);
    terminal.table("--interval 300ms");
    let recorded = terminal.record();
    kill(terminal.tracer(), Signal::SIGUSR1).unwrap();
    let last = |screen: &str| {
        screen
            .lines()
            .rev()
            .find(|line| !line.is_empty())
            .unwrap_or_default()
            .to_owned()
    };
    // The message is on the screen for 5 s only, so the test searches the recording.
    terminal.wait("the message", |_| recorded.contains("closed on"));
    terminal.wait("the keys", |screen| last(screen).contains("q quit"));
    terminal.keys(&["q"]);
    // The message is printed after the table closes, followed by the closing summary.
    terminal.wait("both summaries", |screen| screen.matches("closed on").count() == 2);
    terminal.is_restored();
}

fn replay_steps_back() {
    let capture = write_scratch_file("steps-back.jsonl.zst", include_bytes!("../data/incident.jsonl.zst"));
    let terminal = Terminal::open(120, 40);
    terminal.command(&format!(
        "'{}' --read '{}' -o table --interval 2s",
        binary().to_string_lossy(),
        capture.display()
    ));
    // The last window is partial. Only then is there surely an earlier window to step back to.
    let last = terminal.wait("the last window", |screen| screen.contains("partial"));
    terminal.keys(&["[", "["]);
    let before = terminal.wait("a window before", |screen| screen.contains("PAUSED at window"));
    assert_ne!(before, last);
    terminal.keys(&["]"]);
    // A new grouping and a new filter each read the capture again.
    terminal.keys(&["g"]);
    terminal.wait("services", |screen| {
        screen.contains("by service") && !screen.contains("next window") && screen.contains("shop/database:5432")
    });
    terminal.text("/--failed");
    terminal.keys(&["Enter"]);
    terminal.wait("failures", |screen| {
        screen.contains("only --failed") && screen.contains("refused by peer") && !screen.contains("next window")
    });
    terminal.keys(&["q"]);
    terminal.wait("the summary", |screen| screen.contains("closed on"));
    terminal.is_restored();
}

fn quitting_restores_the_screen() {
    for end in ["q", "C-c"] {
        let terminal = Terminal::open(80, 24);
        terminal.table("");
        // Esc closes the help. Without the help it does nothing.
        terminal.keys(&["?"]);
        terminal.wait("help", |screen| screen.contains("PgUp, PgDn"));
        terminal.keys(&["Escape"]);
        terminal.wait("no help", |screen| screen.contains("CLIENT"));
        terminal.keys(&["Escape"]);
        terminal.keys(&[end]);
        terminal.wait("the summary", |screen| screen.contains("closed on"));
        terminal.is_restored();
    }
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let terminal = Terminal::open(80, 24);
        terminal.table("");
        kill(terminal.tracer(), signal).unwrap();
        terminal.is_restored();
    }
}

/// The argument with which the test binary runs [`panics_at_the_screen`].
pub const ARGUMENT: &str = "panic-at-the-screen";

/// Takes over the terminal as the tool does, waits for a key that quits, and panics.
pub fn panics_at_the_screen() -> ! {
    let (quit, quits) = channel();
    let options = ViewOptions {
        by: vec![Key::Ip],
        sort: Sort::default(),
        top: None,
        color: false,
        totals: false,
        can_reread: false,
        is_replay: false,
        joins: false,
        parse_filter: parse_prompt_filter,
    };
    let history = SharedHistory::new(1);
    let screen = term::start(options, history, move |_| quit.send(()).expect("the main thread waits"));
    let screen = screen.expect("a terminal");
    quits.recv().expect("a key");
    // The panic is in the thread that feeds the screen, as in the tool.
    let fed = thread::spawn(move || {
        let _screen = screen;
        panic!("intended panic");
    });
    std::process::exit(i32::from(fed.join().is_err()));
}

fn panic_restores_the_screen() {
    let terminal = Terminal::open(80, 24);
    let this = std::env::current_exe().expect("this program");
    terminal.command(&format!(
        "RUST_BACKTRACE=0 '{}' {ARGUMENT}; echo status $?",
        this.display()
    ));
    terminal.wait("the table", |_| terminal.fact("alternate_on") == "1");
    terminal.keys(&["q"]);
    let screen = terminal.wait("the panic", |screen| screen.contains("status 1"));
    assert!(screen.contains("intended panic"), "{screen}");
    terminal.is_restored();
}

/// The terminal disappears, as when an ssh connection breaks.
fn closed_terminal_ends_the_tool() {
    let terminal = Terminal::open(80, 24);
    terminal.table("--interval 300ms");
    let tracer = terminal.tracer();
    let objects = bpf::objects_of(tracer);
    assert!(!objects.is_empty());
    drop(terminal);
    wait_until("the tracer has ended", || kill(tracer, None).is_err());
    wait_until("the kernel has removed the objects", || {
        bpf::existing(&objects).is_empty()
    });
}

fn suspended_and_resumed() {
    let terminal = Terminal::open(80, 24);
    terminal.table("--interval 300ms");
    for by_key in [true, false] {
        if by_key {
            terminal.keys(&["C-z"]);
        } else {
            kill(terminal.tracer(), Signal::SIGTSTP).unwrap();
        }
        terminal.wait("the shell", |screen| {
            screen.contains("BEFORE") && screen.contains("Stopped")
        });
        assert_eq!(
            (&*terminal.fact("alternate_on"), &*terminal.fact("cursor_flag")),
            ("0", "1")
        );
        terminal.command("clear; echo BEFORE; fg");
        terminal.wait("the table", |screen| {
            screen.contains("CLIENT") && screen.contains("quit")
        });
        assert_eq!(
            (&*terminal.fact("alternate_on"), &*terminal.fact("cursor_flag")),
            ("1", "0")
        );
    }
    terminal.keys(&["q"]);
    terminal.is_restored();
}

/// The terminal reads nothing while 20,000 ends close in 70 batches. The ring holds one batch. No record is lost, and
/// memory stays below 64 MiB. The test makes the next batch only when the metrics have counted the last one.
fn stopped_terminal_loses_no_record() {
    let batches: u32 = if is_small_vm() { 20 } else { 70 };
    // The number of connections whose opens and closes fit into the ring.
    const BATCH: usize = 143;
    let server = net::loopback_v4(0);
    let listener = listen(IpVersion::V4);
    let terminal = Terminal::open(80, 24);
    let metrics = free_port(IpVersion::V4);
    terminal.table(&format!(
        "--interval 100ms --by connection --buffer 256Ki --metrics {metrics} --to-ip {server}"
    ));
    let tracer = terminal.tracer();
    let tmux = Pid::from_raw(terminal.fact("pid").parse().unwrap());
    let memory = || {
        let status = std::fs::read_to_string(format!("/proc/{tracer}/status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let stopped = Stopped::new(tmux);
    for batch in 1..=batches {
        make_traffic_to(&listener, BATCH);
        let made = f64::from(batch) * 2.0 * BATCH as f64;
        wait_until("the batch is counted", || {
            scrape(local(metrics)).sum("kmesh_trace_outcomes_total", &[]) == made
        });
    }
    let kib = memory();
    drop(stopped);
    terminal.keys(&["q"]);
    // The terminal may wrap a line at a space, which the screen then lacks. The place depends on the node's name.
    let words = |screen: &str| screen.split_whitespace().collect::<String>();
    let screen = terminal.wait("the whole summary", |screen| words(screen).contains("stillopen"));
    let summary = words(&screen);
    assert!(
        summary.contains(&format!(":{}delivered", 2 * batches as usize * BATCH)),
        "{screen}"
    );
    assert!(summary.contains(",0lost,"), "{screen}");
    assert!(kib < 64 << 10, "{kib} KiB");
    terminal.is_restored();
}
