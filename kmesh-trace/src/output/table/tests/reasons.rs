//! Dropped packets, resets and listeners on the screen.

use super::*;
use crate::record::{AcceptQueue, PacketDirection, ReasonSums, Subject};

fn dropped(cookie: u64, window: i64, drops: &[(&str, u64)]) -> Record {
    let drops = drops
        .iter()
        .map(|&(reason, packets)| testing::drops(PacketDirection::Sent, reason, packets));
    Record {
        drops: Some(drops.collect()),
        ..close(cookie, window, "10.0.0.1:80", Outcome::ConnectAborted, 0)
    }
}

fn aborted(cookie: u64, window: i64) -> Record {
    Record {
        reset_reason: Some("TCP_ABORT_ON_CLOSE".into()),
        ..close(cookie, window, "10.0.0.2:81", Outcome::ResetByLocal, 0)
    }
}

#[test]
fn main_reason_has_a_column_where_there_is_room() {
    let mut table = Table::new(&[Key::Port]);
    table.records(&[
        dropped(1, 0, &[("NETFILTER_DROP", 3), ("NO_SOCKET", 1)]),
        dropped(2, 0, &[("NETFILTER_DROP", 3)]),
        aborted(3, 0),
        close(4, 0, "10.0.0.3:82", Outcome::Ok, 1),
    ]);
    table.end_window(0);
    let mut view = table.view((160, 24));
    assert!(view.lines()[2].contains(" REASON "), "{:#?}", view.lines());
    let screen = rows(&mut view);
    let has = |port: &str, text: &str| screen.iter().any(|row| row.contains(port) && row.contains(text));
    // The whole text with the number does not fit.
    for (port, text) in [
        ("*:80", " 6 NETFILTER_DROP "),
        ("*:81", " TCP_ABORT_ON_CLOSE "),
        ("*:82", " -  "),
    ] {
        assert!(has(port, text), "{port}: {screen:#?}");
    }
    type_text(&mut view, "t");
    assert!(rows(&mut view).iter().any(|row| row.contains(" 6 NETFILTER_DROP ")));
    let narrow = table.view((120, 24)).lines();
    assert!(!narrow[2].contains("REASON"), "{narrow:#?}");
}

#[test]
fn rows_are_sorted_by_drops() {
    let mut table = Table::new(&[Key::Port]);
    table.records(&[
        close(1, 0, "10.0.0.3:82", Outcome::Ok, 1 << 20),
        dropped(2, 0, &[("NETFILTER_DROP", 1)]),
    ]);
    table.end_window(0);
    let options = ViewOptions {
        sort: "-drops".parse().unwrap(),
        ..options()
    };
    let mut view = View::new(options, table.history.clone(), (160, 24));
    view.refresh();
    assert!(rows(&mut view)[0].contains("*:80"));
    assert!(view.lines()[2].contains(" REASON▼"), "{:#?}", view.lines());
}

#[test]
fn page_of_a_group_has_its_reasons_and_those_of_each_connection() {
    let mut table = Table::new(&[Key::Ip]);
    table.records(&[
        dropped(1, 0, &[("NETFILTER_DROP", 3)]),
        dropped(2, 0, &[("IP_RPFILTER", 2), ("NETFILTER_DROP", 1)]),
    ]);
    table.end_window(0);
    let mut view = table.view((110, 24));
    type_text(&mut view, "\n");
    let state = state(&mut view);
    assert!(state.contains("  dropped: 2 IP_RPFILTER, 4 NETFILTER_DROP"), "{state}");
    let screen = rows(&mut view);
    assert!(view.lines()[2].contains(" REASON "), "{:#?}", view.lines());
    assert!(
        screen.iter().any(|row| row.contains(" 3 NETFILTER_DROP ")),
        "{screen:#?}"
    );
    assert!(screen.iter().any(|row| row.contains(" 2 IP_RPFILTER ")), "{screen:#?}");
}

#[test]
fn hostile_reasons_cannot_control_the_terminal() {
    let mut reasons = ReasonSums::default();
    for name in testing::hostile_texts().take(200) {
        reasons.add(&name.into(), 1);
    }
    let drops: Vec<_> = reasons.iter().collect();
    let mut table = Table::new(&[Key::Ip]);
    table.records(&[dropped(1, 0, &drops)]);
    table.end_window(0);
    let mut view = table.view((200, 24));
    for keys in ["", "\n"] {
        type_text(&mut view, keys);
        for line in view.lines() {
            assert!(testing::is_harmless(&line), "{line:?}");
        }
    }
}

/// Returns a listener of the pod of the examples, in window `window`.
fn listener(cookie: u64, window: i64, [backlog, max_backlog, dropped, dropped_total]: [u32; 4]) -> Record {
    let mut record = testing::listening();
    record.id.cookie = cookie;
    record.time = WallTime(START + (window + 1) * 5 * SECOND - 1);
    record.dst.set_port(9_000 + cookie as u16);
    record.subject = Subject::Listener(AcceptQueue {
        backlog,
        max_backlog,
        half_open: 0,
        dropped,
        dropped_total,
    });
    record
}

/// Returns the table after a window with a quiet, a dropping and a full listener.
fn with_listeners() -> Table {
    let mut table = Table::new(&[Key::Workload]);
    table.sink.watermark(WallTime(START)).unwrap();
    for record in [
        listener(1, 0, [0, 128, 0, 0]),
        listener(2, 0, [1, 128, 7, 9]),
        listener(3, 0, [129, 128, 5, 40]),
        testing::rejected(),
    ] {
        table.sink.report(&record).unwrap();
    }
    table.records(&[close(1, 0, "10.0.0.1:80", Outcome::Ok, 1)]);
    table.end_window(0);
    table
}

#[test]
fn l_shows_listeners_with_full_queues_first() {
    let table = with_listeners();
    for (columns, lines) in [(120, 40), (80, 24), (40, 8)] {
        let mut view = table.view((columns, lines));
        type_text(&mut view, "l");
        super::screen::assert_golden(&format!("listeners-{columns}x{lines}.txt"), &view.lines());
    }
    let mut view = table.view((120, 40));
    type_text(&mut view, "lf");
    let screen = rows(&mut view);
    assert_eq!(screen.len(), 2, "{screen:#?}");
    assert!(state(&mut view).contains("failures only"));
    type_text(&mut view, "l");
    assert!(view.lines()[2].contains("CLIENT"), "{:#?}", view.lines());
}

#[test]
fn listener_without_a_new_report_has_dropped_nothing() {
    let mut table = with_listeners();
    // The first one is gone.
    table.sink.exclude(listener(1, 0, [0; 4]).id);
    table.sink.report(&listener(3, 1, [0, 128, 1, 41])).unwrap();
    table.records(&[close(2, 1, "10.0.0.1:80", Outcome::Ok, 1)]);
    table.end_window(1);
    let mut view = table.view((120, 40));
    type_text(&mut view, "l");
    let screen = rows(&mut view);
    let words: Vec<Vec<_>> = screen
        .iter()
        .map(|row| row.split_whitespace().skip(1).collect())
        .collect();
    let expected = [
        ["0.0.0.0:9003", "python3/4711", "0/128", "-", "1", "41"],
        ["0.0.0.0:9002", "python3/4711", "1/128", "-", "-", "9"],
    ];
    assert_eq!(words, expected);
    type_text(&mut view, "[");
    assert_eq!(rows(&mut view).len(), 3);
}

#[test]
fn replay_without_listener_events_says_so() {
    let options = ViewOptions {
        is_replay: true,
        ..options()
    };
    let mut without = Table::new(&[Key::Workload]);
    without.records(&[close(1, 0, "10.0.0.1:80", Outcome::Ok, 1)]);
    without.end_window(0);
    let mut view = View::new(options.clone(), without.history.clone(), (120, 24));
    view.refresh();
    type_text(&mut view, "l");
    let expected = "no listener events passed the filters, or the capture has none (--events listener records them)";
    assert_eq!(rows(&mut view), [expected]);
    assert!(!state(&mut view).contains("full"), "{}", state(&mut view));

    let mut gone = with_listeners();
    for cookie in 1..=3 {
        gone.sink.exclude(listener(cookie, 0, [0; 4]).id);
    }
    gone.records(&[close(2, 1, "10.0.0.1:80", Outcome::Ok, 1)]);
    gone.end_window(1);
    let mut view = View::new(options, gone.history.clone(), (120, 24));
    view.refresh();
    type_text(&mut view, "l");
    assert_eq!(rows(&mut view), ["no listeners"]);
}

#[test]
fn prompt_filters_listeners() {
    let mut table = with_listeners();
    let filter = parse_prompt_filter("--port 9002").unwrap();
    table.commands.send(UiCommand::Filter(Box::new(filter))).unwrap();
    table.end_window(1);
    table.records(&[close(2, 2, "10.0.0.1:80", Outcome::Ok, 1)]);
    table.end_window(2);
    let mut view = table.view((120, 40));
    type_text(&mut view, "l");
    let screen = rows(&mut view);
    assert_eq!(screen.len(), 1, "{screen:#?}");
    assert!(screen[0].contains(":9002"), "{screen:#?}");
}

#[test]
fn arrows_scroll_the_listeners() {
    let mut table = Table::new(&[Key::Workload]);
    table.sink.watermark(WallTime(START)).unwrap();
    for cookie in 1..=50 {
        table.sink.report(&listener(cookie, 0, [0, 128, 0, 0])).unwrap();
    }
    table.records(&[close(1, 0, "10.0.0.1:80", Outcome::Ok, 1)]);
    table.end_window(0);
    let mut view = table.view((120, 14));
    type_text(&mut view, "l");
    let first = |view: &mut View| {
        let row = rows(view).remove(0);
        row.split_whitespace().nth(1).unwrap().to_owned()
    };
    for (key, expected) in [
        (KeyCode::Down, "0.0.0.0:9002"),
        (KeyCode::PageDown, "0.0.0.0:9012"),
        (KeyCode::Up, "0.0.0.0:9011"),
        (KeyCode::End, "0.0.0.0:9041"),
        (KeyCode::Down, "0.0.0.0:9041"),
        (KeyCode::Home, "0.0.0.0:9001"),
        (KeyCode::Enter, "0.0.0.0:9001"),
    ] {
        press(&mut view, &[key]);
        assert_eq!(first(&mut view), expected, "{key:?}");
    }
    press(&mut view, &[KeyCode::Esc]);
    assert!(state(&mut view).starts_with("by workload"), "{}", state(&mut view));
    assert_eq!(type_text(&mut view, "lq"), Some(UiCommand::Quit));
}
