//! The screen as text.

use super::*;

/// Compares a screen with a golden file. `KMESH_TRACE_UPDATE_GOLDEN=1` writes the file instead.
pub(super) fn assert_golden(name: &str, lines: &[String]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/data/table")
        .join(name);
    let screen: String = lines.iter().map(|line| format!("{}\n", line.trim_end())).collect();
    if std::env::var_os("KMESH_TRACE_UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &screen).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(screen == expected, "{name} differs:\n{screen}");
}

#[test]
fn screens_match_the_golden_files() {
    for (columns, lines) in [(80, 24), (120, 40), (200, 50), (40, 8)] {
        let mut view = view((columns, lines));
        assert_golden(&format!("{columns}x{lines}.txt"), &view.lines());
        type_text(&mut view, "?");
        assert_golden(&format!("help-{columns}x{lines}.txt"), &view.lines());
    }
}

#[test]
fn screens_are_as_wide_and_high_as_the_terminal() {
    for (columns, lines) in [
        (80, 24),
        (120, 40),
        (200, 60),
        (60, 10),
        (40, 6),
        (20, 3),
        (1, 1),
        (300, 100),
    ] {
        let mut view = view((columns, lines));
        for keys in ["", "?", " s", "\n", "/--port x\n"] {
            type_text(&mut view, keys);
            let screen = view.lines();
            if columns >= 20 {
                assert_eq!(screen.len(), usize::from(lines), "{columns}×{lines} {keys:?}");
            }
            for line in screen {
                let is_narrow = columns < 40;
                assert!(
                    is_narrow || text::width(&line) <= usize::from(columns),
                    "{columns}×{lines} {line:?}"
                );
            }
        }
    }
}

#[test]
fn new_and_quiet_groups_are_marked() {
    let mut table = Table::new(&[Key::Workload]);
    table.sink.watermark(WallTime(START)).unwrap();
    table.records(&incident());
    let mut view = table.view((120, 40));
    assert!(rows(&mut view).iter().all(|row| row.starts_with([' ', '>'])));
    table.end_window(1);
    view.refresh();
    press(&mut view, &[KeyCode::End]);
    let screen = rows(&mut view);
    let marks: String = screen.iter().map(|row| row.chars().next().unwrap_or(' ')).collect();
    assert_eq!(marks, " ++->", "{screen:#?}");
    assert!(screen[3].contains("10.244.0.14:5432"), "{screen:#?}");
    assert!(screen[4].contains("10.244.0.15:6379"), "{screen:#?}");
}

#[test]
fn failed_group_stays_for_12_quiet_windows_and_another_for_2() {
    let mut table = Table::new(&[Key::Port]);
    let at_window = |window: i64| close(100 + window as u64, window, "10.0.0.9:80", Outcome::Ok, 1);
    table.records(&[
        close(1, 0, "10.0.0.1:81", Outcome::Refused, 0),
        close(2, 0, "10.0.0.2:82", Outcome::Ok, 0),
    ]);
    let mut view = table.view((200, 50));
    for window in 1..=14 {
        table.records(&[at_window(window)]);
        table.end_window(window);
        view.refresh();
        let screen = rows(&mut view);
        let has = |port: &str| screen.iter().find(|row| row.contains(port));
        assert_eq!(has("*:82").is_some(), window <= 2, "window {window}: {screen:#?}");
        assert_eq!(has("*:81").is_some(), window <= 12, "window {window}: {screen:#?}");
        if let Some(row) = has("*:81") {
            let age = window * 5 + 4;
            let age = if age < 60 {
                format!("{age}s")
            } else {
                format!("{}m", age / 60)
            };
            assert!(row.contains(&format!("refused by peer {age} ago")), "{row}");
        }
    }
    // A group that comes back is new.
    table.records(&[
        close(3, 15, "10.0.0.1:81", Outcome::Ok, 0),
        close(4, 15, "10.0.0.1:80", Outcome::Ok, 1000),
    ]);
    table.end_window(15);
    view.refresh();
    let screen = rows(&mut view);
    assert!(
        screen.iter().any(|row| row.starts_with('+') && row.contains("*:81")),
        "{screen:#?}"
    );
}

#[test]
fn last_window_stays_after_the_end() {
    let mut view = view((80, 24));
    type_text(&mut view, "?");
    let lines = view.final_lines();
    assert!(lines[0].starts_with("worker-1"), "{lines:#?}");
    assert_eq!(lines.len(), 8, "{lines:#?}");
    let nothing = Table::new(&[Key::Workload]).view((80, 24)).final_lines();
    assert!(nothing.is_empty(), "{nothing:#?}");
}

#[test]
fn columns_do_not_move_between_windows() {
    let mut largest = testing::largest();
    largest.time = WallTime(START);
    for width in [40, 60, 80, 120, 160, 200, 300] {
        let mut lines = Vec::new();
        for records in [incident(), vec![largest.clone()]] {
            let mut table = Table::new(&[Key::Workload]);
            table.records(&records);
            table.end_window(1);
            let history = table.history.lock();
            let frame = history.latest().unwrap();
            let shown: Vec<_> = frame
                .rows
                .iter()
                .map(|row| ShownRow::new(row.into(), &frame.span))
                .collect();
            lines.extend(Layout::new(width, false, Contents::default()).lines(&shown, Sort::default(), false));
        }
        let widths: Vec<_> = lines.iter().map(|line| text::width(line)).collect();
        assert!(
            widths.iter().all(|&other| other == widths[0] && other <= width),
            "{width}: {lines:#?}"
        );
    }
}

#[test]
fn outcomes_and_addresses_are_never_shortened() {
    for (width, address) in [(40, "10.244.0.13:9080"), (80, "10.244.0.13:9080")] {
        for &outcome in Outcome::ALL.iter().filter(|outcome| **outcome != Outcome::Ok) {
            let records: Vec<_> = (0..12).map(|cookie| close(cookie, 0, address, outcome, 0)).collect();
            let mut table = Table::new(&[Key::Workload]);
            table.records(&records);
            table.end_window(0);
            let screen = rows(&mut table.view((width, 24)));
            assert!(screen[0].contains(address), "{screen:#?}");
            assert!(screen[0].contains("10.244.0.17"), "{screen:#?}");
            let text = crate::output::outcome_text::outcome_text(outcome);
            let failed = if width == 40 {
                "12".to_owned()
            } else {
                format!("12 {text}")
            };
            assert!(screen[0].contains(&failed), "{screen:#?}");
        }
    }
}

#[test]
fn outcome_has_a_column_when_connections_are_grouped_by_it() {
    let mut table = Table::new(&[Key::Outcome]);
    table.records(&incident());
    table.end_window(1);
    let mut view = View::new(
        ViewOptions {
            by: vec![Key::Outcome],
            ..options()
        },
        table.history.clone(),
        (80, 24),
    );
    view.refresh();
    assert!(view.lines()[2].contains("OUTCOME"), "{:#?}", view.lines());
    let screen = rows(&mut view);
    for outcome in ["ok", "refused by peer"] {
        assert!(screen.iter().any(|row| row.contains(outcome)), "{screen:#?}");
    }
}

#[test]
fn process_stands_at_the_traced_end() {
    let mut inbound = testing::example();
    inbound.time = WallTime(START);
    let outbound = close(1, 0, "10.0.0.2:82", Outcome::Ok, 1);
    let cases: [(&[Key], &str); 4] = [
        (&[Key::Process], "in - python3:9080"),
        (&[Key::Pid], "out python3/4711 *:82"),
        (&[Key::Process, Key::Port], "out python3 *:82"),
        (&[Key::Ip, Key::Pid], "out 10.244.0.17 python3/4711 10.0.0.2:82"),
    ];
    for (by, expected) in cases {
        let mut table = Table::new(by);
        table.records(&[inbound.clone(), outbound.clone()]);
        table.end_window(0);
        let screen = rows(&mut table.view((200, 50)));
        let words = |row: &String| row[1..].split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(
            screen.iter().any(|row| words(row).starts_with(expected)),
            "{by:?}: {screen:#?}"
        );
    }
}

#[test]
fn service_without_a_pod_is_named() {
    let mut record = close(1, 0, "10.96.0.9:80", Outcome::Refused, 0);
    record.names.service = testing::in_pods().names.service;
    let mut table = Table::new(&[Key::Workload]);
    table.records(&[record]);
    table.end_window(0);
    let screen = rows(&mut table.view((200, 24)));
    assert!(screen[0].contains("echo-1-27855/productpage:80"), "{screen:#?}");
}

#[test]
fn wide_and_hostile_names_keep_lines_aligned() {
    let rename = |record: &mut Record, name: &str| {
        let pod = record.names.dst.pod.as_mut().map(Arc::make_mut).unwrap();
        pod.name = name.into();
        pod.workload = None;
        record.names.service = None;
        record.time = WallTime(START);
    };
    let names = [
        "日本語の名前がとても長いポッド",
        "a\u{1b}[2J\nb",
        "\u{202e}evil",
        "e\u{301}\u{301}",
        "👨‍👩‍👧",
    ];
    let mut records = Vec::new();
    for name in names {
        let mut record = testing::in_pods();
        rename(&mut record, name);
        records.push(record);
    }
    for name in testing::hostile_names().take(40) {
        let mut record = testing::in_pods();
        rename(&mut record, &String::from_utf8_lossy(&name));
        record.process = testing::named(&name).process;
        records.push(record);
    }
    for size in [(80, 60), (120, 60), (200, 60)] {
        let mut table = Table::new(&[Key::Workload]);
        table.records(&records);
        table.end_window(0);
        let lines = table.view(size).lines();
        let width = text::width(&lines[2]);
        for line in lines[3..40].iter().filter(|line| !line.is_empty()) {
            assert!(testing::is_harmless(line), "{line:?}");
            assert_eq!(text::width(line), width, "{line:?}");
        }
    }
}

#[test]
fn color_is_never_the_only_sign() {
    let table = table();
    let mut plain = table.view((120, 40));
    let options = ViewOptions {
        color: true,
        ..options()
    };
    let mut colored = View::new(options, table.history.clone(), (120, 40));
    colored.refresh();
    let (plain, colored) = (plain.lines().join("\n"), colored.lines().join("\n"));
    assert!(colored.contains("\x1b["));
    let mut bare = String::new();
    let mut rest = colored.as_str();
    while let Some((before, after)) = rest.split_once("\x1b[") {
        bare += before;
        rest = after.split_once('m').unwrap().1;
    }
    bare += rest;
    assert_eq!(bare, plain);
}

#[test]
fn sort_keys_are_those_of_the_line_and_the_titles() {
    for (text, key, descending) in [
        ("-failed", SortKey::Failed, true),
        ("bytes", SortKey::Bytes, false),
        ("-duration_quantiles_ns", SortKey::DurationQuantilesNs, true),
        ("-srtt", SortKey::SrttQuantilesUs, true),
        ("lost_segments", SortKey::LostSegments, false),
    ] {
        assert_eq!(text.parse(), Ok(Sort { key, descending }), "{text}");
    }
    for text in ["", "-", "--failed", "Failed", "latency"] {
        let error = text.parse::<Sort>().unwrap_err();
        assert!(error.contains("sent_bytes"), "{text}: {error}");
    }
    for (title, key) in columns::sorted_titles() {
        let descending = false;
        assert_eq!(title.to_lowercase().parse(), Ok(Sort { key, descending }), "{title}");
    }
}
