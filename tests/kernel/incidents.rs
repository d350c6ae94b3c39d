//! The first ten minutes of ten incidents, as a user of a terminal sees them: at most two commands each. Each scene
//! states the answer that the user needs, and compares the screens with golden files.

mod scene;

use std::net::SocketAddr;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, SystemTime};

use nix::errno::Errno;

use crate::Topic;
use crate::support::actor::Actor;
use crate::support::expect::format_time;
use crate::support::net;
use crate::support::probe::{self, Need};
use crate::support::sock::{ClosedPort, IpVersion, Span, connect_nonblocking, timed, wait_until};
use crate::support::tracer::{TracerCommand, binary};
use scene::{Scene, check_time, row, with_servers_first};

/// Returns the names of golden files, and their texts.
macro_rules! golden {
    ($($name:literal,)*) => {
        &[$(($name, include_str!(concat!("incidents/", $name, ".txt")))),*]
    };
}

/// The golden files by name: the expected output of each incident.
const GOLDEN: &[(&str, &str)] = golden![
    "closed_port",
    "connection_per_request",
    "dropped_syns",
    "dropped_syns_table",
    "evidence",
    "failures_by_destination",
    "leak",
    "long_stream",
    "long_stream_lines",
    "resets",
    "slow_network",
    "slow_server",
    "top_talkers",
];

pub fn topic() -> Topic {
    Topic::new("incidents")
        .standalone("closed_port", &[Need::Tmux], closed_port)
        .standalone("leaking_process", &[Need::Tmux], leaking_process)
        .standalone("slow_server", &[Need::Tmux, Need::Turns], slow_server)
        .standalone("slow_network", &[Need::Tmux, Need::Turns, Need::Tbf], slow_network)
        .standalone("dropped_syns", &[Need::Tmux, Need::Nft], dropped_syns)
        .standalone("hanging_attempts_are_noted", &[Need::Nft], hanging_attempts)
        .standalone("resets_under_load", &[Need::Tmux], resets_under_load)
        .standalone("connection_per_request", &[Need::Tmux], connection_per_request)
        .standalone("top_talkers_now", &[Need::Tmux], top_talkers)
        .standalone("long_stream", &[Need::Tmux], long_stream)
        .standalone("evidence_is_saved_cut_and_shared", &[Need::Tmux], evidence)
        .standalone(
            "failures_by_destination",
            &[Need::Tmux, Need::Nft],
            failures_by_destination,
        )
}

/// A service refuses: who is refused, by which address, since when?
fn closed_port() {
    let mut scene = Scene::open(120, 40);
    let (checkout, billing) = (scene.process("checkout"), scene.process("billing"));
    let (web, ledger) = (scene.at(102, 8080), scene.at(109, 8080));
    scene.trace("kmesh-trace --outcome refused");
    let ((), span) = timed(|| assert_eq!(checkout.try_connect(web), Errno::ECONNREFUSED));
    for _ in 0..2 {
        assert_eq!(checkout.try_connect(web), Errno::ECONNREFUSED);
    }
    assert_eq!(billing.try_connect(ledger), Errno::ECONNREFUSED);
    let refused = |text: &str| text.matches("refused by peer").count();
    scene.terminal.wait_unwrapped("four lines", |text| refused(text) == 4);
    let text = scene.interrupt();
    let lines: Vec<_> = text.lines().filter(|line| refused(line) > 0).collect();
    let client = |actor: &Actor, comm: &str| format!(" ({comm}/{}) → ", actor.pid());
    for line in &lines[..3] {
        let ends = format!("{}{web}  refused by peer", client(&checkout, "checkout"));
        assert!(line.contains(&ends), "{line}");
    }
    let ends = format!("{}{ledger}  refused by peer", client(&billing, "billing"));
    assert!(lines[3].contains(&ends), "{}", lines[3]);
    check_time(lines[0], span);
    scene.compare_lines("closed_port", &text);
}

/// Returns a connection between a new process `client`, which calls it `s`, and a new process `server`.
fn connected(scene: &mut Scene, client: &str, server: &str, host: u8, port: u16) -> (Actor, Actor) {
    let (client, server) = (scene.process(client), scene.process(server));
    let at = server.listen("l", scene.at(host, port));
    client.connect("s", at);
    server.run("accept l s");
    (client, server)
}

/// Sends bytes to the server, which reads them.
fn send(client: &Actor, server: &Actor, bytes: usize) {
    client.start_command(&format!("write s {bytes}"));
    server.run(&format!("read s {bytes}"));
    client.wait_result();
}

/// Returns whether the row with `text` ends with a rate.
fn has_rate(screen: &str, text: &str) -> bool {
    row(screen, text).is_some_and(|row| row.last().is_some_and(|unit| unit.ends_with("B/s")))
}

fn has_new_group(screen: &str) -> bool {
    screen.lines().any(|line| line.starts_with('+'))
}

/// Who moves the most bytes now?
fn top_talkers() {
    let mut scene = Scene::open(80, 24);
    let (backup, storage) = connected(&mut scene, "backup", "storage", 104, 9000);
    let (web, cache) = connected(&mut scene, "web", "cache", 106, 6379);
    scene.table("kmesh-trace -o table --by process --interval 1s");
    let talkers = ["backup", "storage", "web", "cache"];
    let screen = scene.wait("four old groups with rates", |screen| {
        send(&backup, &storage, 1_000_000);
        send(&web, &cache, 1_000);
        talkers.iter().all(|comm| has_rate(screen, comm)) && !has_new_group(screen)
    });
    // The largest first.
    let position = |comm: &str| screen.lines().position(|line| line.contains(comm));
    for large in ["backup", "storage"] {
        for small in ["web", "cache"] {
            assert!(position(large) < position(small), "{screen}");
        }
    }
    scene.compare_screen("top_talkers", &with_servers_first(&screen));
    scene.quit();
}

/// Which process leaks connections, how many, to whom?
fn leaking_process() {
    const LEAKED: usize = 12;
    let mut scene = Scene::open(120, 40);
    let [worker, redis, web, cache] = ["worker", "redis", "web", "cache"].map(|comm| scene.process(comm));
    let leak = redis.listen("l", scene.at(106, 6379));
    let sound = cache.listen("l", scene.at(107, 11211));
    scene.table("kmesh-trace -o table --by process --interval 1s --sort -open");
    for number in 0..LEAKED {
        worker.connect(&format!("c{number}"), leak);
        redis.run(&format!("accept l c{number}"));
    }
    for _ in 0..5 {
        web.connect("s", sound);
        cache.run("accept l s");
        close(&web, &cache);
    }
    scene.terminal.keys(&["t"]);
    let screen = scene.wait("the totals", |screen| {
        let has = |text: &str, counts: [&str; 3]| row(screen, text).is_some_and(|row| row[3..6] == counts);
        screen.contains("totals since")
            && has(" worker ", ["12", "12", "-"])
            && has("redis:", ["12", "12", "-"])
            && has(" web ", ["-", "5", "5"])
            && has("cache:", ["-", "5", "5"])
    });
    // The process with the most open connections comes first, and it has closed none.
    let first_two: String = screen.lines().skip(3).take(2).collect();
    assert!(
        first_two.contains(" worker ") && first_two.contains("redis:"),
        "{screen}"
    );
    assert_eq!(
        row(&screen, " worker ").unwrap()[..6],
        ["out", "worker", "*:6379", "12", "12", "-"]
    );
    scene.compare_screen("leak", &screen);
    scene.quit();
}

/// Closes the connection `s` of a client, then of its server.
fn close(client: &Actor, server: &Actor) {
    client.run("close s");
    assert_eq!(server.run("eof s"), "0");
    server.run("close s");
}

/// Requests and answers over one connection. The server thinks for this long before each answer.
fn requests(client: &Actor, server: &Actor, count: usize, think: Duration) {
    for _ in 0..count {
        send(client, server, 1000);
        thread::sleep(think);
        send(server, client, 100);
    }
}

/// Returns the p95 of responses at the client's and at the server's end, and the round-trip time of the client, in ms.
fn times_of_responses(screen: &str, client: &str, server: &str) -> [f64; 3] {
    let ms = |text: &str| {
        let unit = text.trim_start_matches(|char: char| char.is_ascii_digit() || char == '.');
        let number: f64 = text[..text.len() - unit.len()].parse().expect("a number");
        let factors = [("us", 0.001), ("ms", 1.0), ("s", 1000.0)];
        let (_, factor) = factors.iter().find(|(name, _)| *name == unit).expect("a unit");
        number * factor
    };
    // ... P50 P95 CONNECT RESP95 SRTT LOST
    let [client, server] = [client, server].map(|text| row(screen, text).expect("a row"));
    let from_end = |row: &[String], at: usize| ms(&row[row.len() - at]);
    [from_end(&client, 3), from_end(&server, 3), from_end(&client, 2)]
}

/// Asks a server 20 times, and returns the totals of the table.
fn screen_of_responses(scene: &mut Scene, think: Duration) -> String {
    let [checkout, payments] = ["checkout", "payments"].map(|comm| scene.process(comm));
    let at = payments.listen("l", scene.at(108, 8443));
    scene.table("kmesh-trace --turns -o table --by process --interval 1s");
    checkout.connect("s", at);
    payments.run("accept l s");
    requests(&checkout, &payments, 20, think);
    close(&checkout, &payments);
    scene.terminal.keys(&["t"]);
    let screen = scene.wait("the totals", |screen| {
        let is_closed = |text: &str| row(screen, text).is_some_and(|row| row[5] == "1");
        screen.contains("totals since") && is_closed(" checkout ") && is_closed("payments:8443")
    });
    scene.quit();
    screen
}

/// Payments is slow: is it the server or the network? The server thinks.
fn slow_server() {
    const THINK_MS: u64 = 50;
    let mut scene = Scene::open(200, 50);
    let screen = screen_of_responses(&mut scene, Duration::from_millis(THINK_MS));
    let [waits, takes, round_trip] = times_of_responses(&screen, " checkout ", "payments:8443");
    // The client waits as long as the server takes, and not for the network.
    let think = THINK_MS as f64;
    assert!(takes >= think && waits >= think && takes > waits / 2.0, "{screen}");
    assert!(round_trip < think / 2.0, "{screen}");
    scene.compare_screen("slow_server", &screen);
}

/// Payments is slow: is it the server or the network? The link is narrow.
fn slow_network() {
    let mut scene = Scene::open(200, 50);
    net::run("ip", &["link", "set", "lo", "mtu", "1500"]);
    // A request of 1000 bytes takes 85 ms.
    let shape = "qdisc add dev lo root tbf rate 100kbit burst 1600 latency 2s";
    net::run("tc", &shape.split(' ').collect::<Vec<_>>());
    let screen = screen_of_responses(&mut scene, Duration::ZERO);
    let [waits, takes, round_trip] = times_of_responses(&screen, " checkout ", "payments:8443");
    // The client waits for the network, and the server takes a part of that only.
    assert!(waits >= 50.0 && takes < waits && round_trip >= 30.0, "{screen}");
    // A busy machine may answer so late that the kernel sends a segment again.
    scene.compare_screen("slow_network", &without_losses(&screen));
}

/// Returns the screen of a table without the numbers in its last column.
fn without_losses(screen: &str) -> String {
    let without = |row: &str| {
        let rest = row.trim_end_matches(|char: char| char.is_ascii_digit());
        match row.len() - rest.len() {
            0 => row.to_owned(),
            digits => format!("{rest}{}-", " ".repeat(digits - 1)),
        }
    };
    let above = screen.lines().take(3).map(str::to_owned);
    let lines: Vec<_> = above.chain(screen.lines().skip(3).map(without)).collect();
    lines.join("\n")
}

/// Attempts hang and nothing fails: how many, whose, and where are the SYNs dropped?
fn dropped_syns() {
    const ATTEMPTS: usize = 12;
    let mut scene = Scene::open(40, 8);
    net::set_packet_filter(&["tcp dport 9000 drop"]);
    let storefront = scene.process("storefront");
    let (from, to) = (scene.at(100, 0), scene.at(103, 9000));
    scene.table("kmesh-trace --failed -o table --by process --interval 1s");
    for number in 0..ATTEMPTS {
        storefront.run(&format!("connect_nonblocking c{number} {from} {to}"));
    }
    let screen = scene.wait("the attempts", |screen| {
        screen.contains("12 connecting") && !screen.contains("partial")
    });
    assert_eq!(row(&screen, "storefront").unwrap(), ["storefront", "*:9000", "0+12"]);
    scene.compare_screen("dropped_syns_table", &screen);
    scene.quit();
    scene.terminal.resize(120, 40);
    // The program gives up, and tries again.
    for number in 0..ATTEMPTS {
        storefront.run(&format!("close c{number}"));
    }
    scene.trace("kmesh-trace --connecting --drops --events update --interval 2s");
    storefront.run(&format!("connect_nonblocking again {from} {to}"));
    scene
        .terminal
        .wait_unwrapped("an update", |text| text.contains("connecting for "));
    let text = scene.interrupt();
    let ends = format!(" (storefront/{}) → {to}  connecting for ", storefront.pid());
    let lines: Vec<_> = text.lines().filter(|line| line.contains(&ends)).collect();
    assert!(!lines.is_empty(), "{text}");
    for line in &lines {
        assert!(
            line.ends_with("dropped: NETFILTER_DROP"),
            "the filter dropped every SYN: {line}"
        );
    }
    // The number of SYNs and of updates depends on the time that the machine takes.
    let (from_last, _) = lines[0].rsplit_once(" SYN").expect("the number of SYNs");
    let syns = &lines[0][from_last.rfind(' ').expect("a space") + 1..];
    scene.mask(syns, "N SYNs dropped: NETFILTER_DROP");
    let is_first = |line: &&str| *line == lines[0] || !lines.contains(line);
    let text: Vec<_> = text.lines().filter(is_first).collect();
    let text = text.join("\n");
    scene.compare_lines("dropped_syns", &text);
}

/// Without a terminal, the blocks of the table have the number of attempts that hang. Where only closes are printed, a
/// message says how to see them, and that works.
fn hanging_attempts() {
    let closed = ClosedPort::blackhole();
    let lines = Arc::new(Mutex::new(Vec::new()));
    let start = |args: &[&str]| {
        let lines = Arc::clone(&lines);
        let tracer = TracerCommand::new(args).on_line(move |line| lines.lock().unwrap().push(line.to_vec()));
        let tracer = tracer.spawn();
        tracer.wait_stderr_containing("tracing every TCP connection");
        tracer
    };
    let has_line = |text: &str| {
        let lines = lines.lock().unwrap();
        lines.iter().any(|line| String::from_utf8_lossy(line).contains(text))
    };
    let short = start(&["-o", "short", "--failed"]);
    short.wait_stderr_containing("an attempt that hangs is printed when it ends; --events close,update");
    let table = start(&["-o", "table", "--failed", "--interval", "1s"]);
    let updates = start(&[
        "-o",
        "short",
        "--failed",
        "--events",
        "close,update",
        "--interval",
        "1s",
    ]);
    let attempts: Vec<_> = (0..12)
        .map(|_| connect_nonblocking(IpVersion::V4.at(0), closed.at(IpVersion::V4)))
        .collect();
    wait_until("the number above the table", || has_line("  12 connecting  0 lost"));
    wait_until("a line about an attempt", || has_line("  connecting for "));
    for tracer in [&table, &updates] {
        let stderr = tracer.interrupt().stderr;
        assert!(
            !stderr.iter().any(|line| line.contains("an attempt that hangs")),
            "{stderr:?}"
        );
    }
    assert_eq!(short.interrupt().status.code(), Some(0));
    drop(attempts);
}

/// Resets under load: who sends them, to whom, and why?
fn resets_under_load() {
    let mut scene = Scene::open(120, 40);
    let [gateway, server] = ["gateway", "server"].map(|comm| scene.process(comm));
    let at = server.listen("l", scene.at(107, 8443));
    scene.trace("kmesh-trace --outcome reset");
    let mut resets: Vec<(SocketAddr, Span)> = Vec::new();
    for number in 0..40 {
        let src = gateway.connect("s", at);
        server.run("accept l s");
        gateway.run("write s 5");
        if number % 20 == 19 {
            // The server closes without reading the request.
            let ((), span) = timed(|| assert_eq!(server.run("close s"), ""));
            resets.push((src, span));
        } else {
            server.run("read s 5");
            send(&server, &gateway, 2);
            server.run("close s");
            assert_eq!(gateway.run("eof s"), "0");
        }
        gateway.run("close s");
    }
    let count = |text: &str| text.lines().filter(|line| line.contains("  reset by ")).count();
    scene.terminal.wait_unwrapped("four lines", |text| count(text) == 4);
    let text = scene.interrupt();
    let lines: Vec<_> = text.lines().filter(|line| count(line) > 0).collect();
    for (ends, (_, span)) in lines.chunks(2).zip(&resets) {
        let local = format!(" → {at} (server/{})  reset by local  ", server.pid());
        let peer = format!(" (gateway/{}) → {at}  reset by peer  ", gateway.pid());
        assert!(ends[0].contains(&local) && ends[1].contains(&peer), "{text}");
        assert!(
            ends[0].contains("  received 5 B") && ends[1].contains("  sent 5 B"),
            "{text}"
        );
        // Linux 6.10 and newer give the reason.
        let has_reasons = probe::check(&[Need::ResetReasons]).is_ok();
        assert_eq!(ends[0].ends_with("  TCP_ABORT_ON_CLOSE"), has_reasons, "{text}");
        check_time(ends[0], *span);
    }
    scene.mask("  TCP_ABORT_ON_CLOSE", "");
    scene.compare_lines("resets", &text);
}

/// Which client makes a connection for each request?
fn connection_per_request() {
    const REQUESTS: usize = 100;
    let mut scene = Scene::open(120, 40);
    let [cart, web] = ["cart", "web"].map(|comm| scene.process(comm));
    let [shop, pricing] = ["shop", "pricing"].map(|comm| scene.process(comm));
    let at = web.listen("l", scene.at(108, 8080));
    let reused = pricing.listen("l", scene.at(109, 9090));
    scene.table("kmesh-trace -o table --by process --interval 1s --sort -opened");
    shop.connect("s", reused);
    pricing.run("accept l s");
    for _ in 0..REQUESTS {
        cart.connect("s", at);
        web.run("accept l s");
        send(&cart, &web, 10);
        send(&web, &cart, 100);
        close(&cart, &web);
        send(&shop, &pricing, 10);
        send(&pricing, &shop, 100);
    }
    scene.terminal.keys(&["t"]);
    let screen = scene.wait("the totals", |screen| {
        let is_complete = |text: &str| row(screen, text).is_some_and(|row| row[5] == "100");
        // A scan finds the bytes of the open connection.
        let has_rate = |text: &str| row(screen, text).is_some_and(|row| row.iter().any(|word| word.ends_with("B/s")));
        screen.contains("totals since")
            && [" cart ", "web:8080"].into_iter().all(is_complete)
            && [" shop ", "pricing:9090"].into_iter().all(has_rate)
    });
    // A connection for each of the requests against one for all of them.
    assert_eq!(
        row(&screen, " cart ").unwrap()[..6],
        ["out", "cart", "*:8080", "-", "100", "100"]
    );
    assert_eq!(
        row(&screen, " shop ").unwrap()[..6],
        ["out", "shop", "*:9090", "1", "1", "-"]
    );
    scene.compare_screen("connection_per_request", &screen);
    scene.quit();
}

/// A stream that began before the tracer and never closes: who, and how much?
fn long_stream() {
    let mut scene = Scene::open(80, 24);
    let (replicator, standby) = connected(&mut scene, "replicator", "standby", 105, 5432);
    // Sums from 1 MiB have the unit MiB.
    send(&replicator, &standby, 2_000_000);
    let mut bytes: u32 = 2_000_000;
    scene.table("kmesh-trace -o table --by process --interval 1s");
    let screen = loop {
        send(&replicator, &standby, 100_000);
        bytes += 100_000;
        let screen = scene.terminal.screen();
        if Scene::shows_keys(&screen)
            && !has_new_group(&screen)
            && has_rate(&screen, " replicator ")
            && has_rate(&screen, "standby:5432")
        {
            break screen;
        }
        assert!(bytes < 4_000_000_000, "no rate appears:\n{screen}");
    };
    assert_eq!(
        row(&screen, " replicator ").unwrap()[..4],
        ["out", "replicator", "*:5432", "1"]
    );
    scene.compare_screen("long_stream", &with_servers_first(&screen));
    scene.quit();
    scene.trace("kmesh-trace --events update --interval 1s --comm replicator --count 1");
    let text = scene.lines();
    let line = text
        .lines()
        .find(|line| line.contains("open for >"))
        .expect("an update");
    let to = scene.at(105, 5432);
    assert!(
        line.contains(&format!(" (replicator/{}) → {to}  open for >", replicator.pid())),
        "{text}"
    );
    let mib = f64::from(bytes) / f64::from(1 << 20);
    let decimals = usize::from(mib < 99.95);
    let sent = format!("sent {mib:.decimals$} MiB");
    assert!(line.contains(&format!("  {sent}  received 0 B")), "{sent}: {text}");
    scene.mask(&sent, "sent SIZE");
    scene.compare_lines("long_stream_lines", &text);
}

/// The evidence is saved, then cut by time and outcome into a file for somebody else.
fn evidence() {
    let mut scene = Scene::open(120, 40);
    let directory = scene.new_directory();
    let [checkout, billing, web] = ["checkout", "billing", "web"].map(|comm| scene.process(comm));
    let (closed, open) = (scene.at(102, 8080), web.listen("l", scene.at(103, 80)));
    scene.trace("kmesh-trace --write incident.jsonl.zst");
    for _ in 0..2 {
        assert_eq!(checkout.try_connect(closed), Errno::ECONNREFUSED);
    }
    let cut = format_time(SystemTime::now());
    for _ in 0..3 {
        assert_eq!(billing.try_connect(closed), Errno::ECONNREFUSED);
    }
    billing.connect("s", open);
    web.run("accept l s");
    close(&billing, &web);
    scene.terminal.wait_unwrapped("seven lines", |text| {
        text.matches("refused by peer").count() == 5 && text.matches("  ok  ").count() == 2
    });
    let saved = scene.interrupt();
    scene.terminal.command(&format!(
        "kmesh-trace --read incident.jsonl.zst --since {cut} --failed --write shared.jsonl.zst"
    ));
    scene
        .terminal
        .wait_unwrapped("both summaries", |text| text.matches(" closed on ").count() == 2);
    let text = scene.lines();
    let who = format!(" (billing/{}) → {closed}  refused by peer", billing.pid());
    assert_eq!(text.matches(&who).count(), 3, "{text}");
    assert_eq!(text.matches(" → ").count(), 3, "{text}");
    // What somebody else finds in the shared file: these three records.
    let mut replay = Command::new(binary());
    let output = replay
        .args(["-o", "json", "--read"])
        .arg(directory.join("shared.jsonl.zst"))
        .output()
        .expect("a replay");
    let shared = String::from_utf8(output.stdout).expect("JSON");
    let records: Vec<_> = shared
        .lines()
        .filter(|line| line.contains("\"type\":\"conn\""))
        .collect();
    assert!(output.status.success() && records.len() == 3, "{shared}");
    assert!(
        records.iter().all(|line| line.contains("\"comm\":\"billing\"")),
        "{shared}"
    );
    scene.mask(&cut, "TIME-OF-THE-CUT");
    scene.compare_lines("evidence", &format!("{saved}\n{text}"));
    std::fs::remove_dir_all(directory).expect("remove the captures");
}

/// What failed within two minutes, by destination?
fn failures_by_destination() {
    let mut scene = Scene::open(200, 50);
    net::set_packet_filter(&["tcp dport 9000 drop"]);
    let [checkout, payments] = ["checkout", "payments"].map(|comm| scene.process(comm));
    let at = payments.listen("l", scene.at(107, 8443));
    let (from, dropped, closed) = (scene.at(100, 0), scene.at(103, 9000), scene.at(105, 5432));
    scene.table("kmesh-trace --failed -o table --by service,outcome --interval all --duration 2m --sort -failed");
    for name in ["c1", "c2"] {
        checkout.run(&format!("connect_nonblocking {name} {from} {dropped}"));
    }
    for _ in 0..7 {
        assert_eq!(checkout.try_connect(closed), Errno::ECONNREFUSED);
    }
    for _ in 0..4 {
        checkout.connect("s", at);
        payments.run("accept l s");
        payments.run("linger0 s");
        payments.run("close s");
        checkout.run("close s");
    }
    let screen = scene.wait("all failures", |screen| {
        ["7 7", "4 4", "0+2"].iter().all(|count| screen.contains(count)) && screen.matches("4 4").count() == 2
    });
    let outcome = |outcome: &str| row(&screen, outcome).unwrap_or_else(|| panic!("no {outcome}: {screen}"));
    assert_eq!(outcome("refused by peer")[2], closed.to_string());
    assert_eq!(outcome("reset by peer")[2], at.to_string());
    assert_eq!(outcome("reset by local")[2], at.to_string());
    assert_eq!(row(&screen, "0+2").unwrap()[2], dropped.to_string());
    assert!(screen.lines().next().unwrap().contains("2 connecting"), "{screen}");
    // The most failures come first.
    assert!(screen.lines().nth(3).unwrap().contains("refused by peer"), "{screen}");
    // Linux 6.10 and newer give the reason.
    scene.mask("4 TCP_STATE", "-          ");
    // How many SYNs were sent until now depends on time.
    scene.compare_screen("failures_by_destination", &without_losses(&screen));
    scene.quit();
}
