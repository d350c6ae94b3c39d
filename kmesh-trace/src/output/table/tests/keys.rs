//! What keys do to the screen.

use super::*;

#[test]
fn help_page_fits_eighty_columns_and_24_lines() {
    assert!(help::HELP.len() <= 23);
    for line in help::HELP {
        assert!(text::width(line) <= 80, "{line}");
    }
    let mut narrow = view((40, 8));
    type_text(&mut narrow, "?");
    press(&mut narrow, &[KeyCode::Down, KeyCode::Down]);
    assert!(
        narrow.lines()[0].starts_with("g          next grouping"),
        "{:?}",
        narrow.lines()
    );
    press(&mut narrow, &[KeyCode::End]);
    assert!(narrow.lines()[6].starts_with("SRTT"), "{:?}", narrow.lines());
    press(&mut narrow, &[KeyCode::Esc]);
    assert!(narrow.lines()[1].starts_with("by workload"), "{:?}", narrow.lines());
}

#[test]
fn q_and_control_c_quit_and_esc_does_not() {
    assert_eq!(type_text(&mut view((80, 24)), "q"), Some(UiCommand::Quit));
    let mut view = view((80, 24));
    assert_eq!(control(&mut view, 'z'), Some(UiCommand::Suspend));
    assert_eq!(press(&mut view, &[KeyCode::Esc, KeyCode::Esc]), None);
    assert_eq!(type_text(&mut view, "\n"), None);
    assert_eq!(press(&mut view, &[KeyCode::Esc, KeyCode::Esc]), None);
    let alt = |char| KeyEvent::new(KeyCode::Char(char), KeyModifiers::ALT);
    type_text(&mut view, "\n");
    assert_eq!(view.key(alt('q')), Some(UiCommand::Quit), "Esc and then q");
    type_text(&mut view, "/");
    assert_eq!(view.key(alt('q')), None);
    assert_eq!(control(&mut view, 'c'), None, "it leaves the prompt");
    assert!(last_line(&mut view).starts_with("q quit"));
    for keys in ["", "?"] {
        type_text(&mut view, keys);
        assert_eq!(control(&mut view, 'c'), Some(UiCommand::Quit), "{keys}");
    }
}

#[test]
fn pause_freezes_the_screen_until_it_ends() {
    let mut table = Table::new(&[Key::Workload]);
    table.records(&incident());
    let mut view = table.view((120, 40));
    let before = rows(&mut view);
    type_text(&mut view, "p");
    table.end_window(1);
    view.refresh();
    assert_eq!(rows(&mut view), before);
    assert!(
        state(&mut view).starts_with("PAUSED at window 1 of 1"),
        "{}",
        state(&mut view)
    );
    type_text(&mut view, " ");
    assert_ne!(rows(&mut view), before);
}

#[test]
fn brackets_step_through_windows() {
    let mut table = Table::new(&[Key::Port]);
    for window in 0..4 {
        let server = format!("10.0.0.1:{}", 80 + window);
        table.records(&[close(1 + window as u64, window, &server, Outcome::Ok, 1)]);
        table.end_window(window);
    }
    let mut view = table.view((120, 40));
    let shown = |view: &mut View| {
        let rows = rows(view);
        let row = rows.iter().find(|row| !row.starts_with('-')).unwrap();
        row.split_whitespace().nth(2).unwrap().to_owned()
    };
    assert_eq!(shown(&mut view), "*:83");
    type_text(&mut view, "[[");
    assert_eq!(shown(&mut view), "*:81");
    assert!(state(&mut view).starts_with("PAUSED at window 2 of 4"));
    table.records(&[close(9, 4, "10.0.0.1:84", Outcome::Ok, 1)]);
    table.end_window(4);
    view.refresh();
    assert_eq!(shown(&mut view), "*:81", "a step back pauses");
    type_text(&mut view, "]");
    assert_eq!(shown(&mut view), "*:82");
    type_text(&mut view, "[[[[[[");
    assert_eq!(shown(&mut view), "*:80");
    type_text(&mut view, "]]]]]]]]]");
    assert_eq!(shown(&mut view), "*:84");
    type_text(&mut view, "[p");
    assert_eq!(shown(&mut view), "*:84", "the end of the pause shows the latest window");
}

#[test]
fn old_windows_are_dropped_beyond_the_limit() {
    let mut table = Table::new(&[Key::Connection]);
    for window in 0..700 {
        let base = window as u64 * 100;
        let records: Vec<_> = (0..90)
            .map(|at| close(base + at, window, "10.0.0.1:80", Outcome::Ok, 1))
            .collect();
        table.records(&records);
        table.end_window(window);
    }
    let (_, count) = table.history.lock().position(0);
    assert!((50..120).contains(&count), "{count}");
}

#[test]
fn totals_add_up_all_windows() {
    let mut view = view((120, 40));
    type_text(&mut view, "t");
    let screen = rows(&mut view);
    assert!(
        state(&mut view).starts_with("totals since 08:19:25Z  by workload"),
        "{}",
        state(&mut view)
    );
    // 67 MiB in 10 s.
    assert!(screen[0].contains("6.7 MiB/s"), "{screen:#?}");
    assert!(screen.iter().any(|row| row.contains("10.244.0.14:5432")), "{screen:#?}");
    assert!(screen.iter().all(|row| row.starts_with([' ', '>'])), "{screen:#?}");
    let opened = screen[0].split_whitespace().nth(4).unwrap().to_owned();
    assert_eq!(opened, "2", "{screen:#?}");
    type_text(&mut view, "t");
    assert!(rows(&mut view)[0].contains("12.4 MiB/s"));
    let options = ViewOptions {
        totals: true,
        ..options()
    };
    let mut view = View::new(options, table().history, (120, 40));
    view.refresh();
    assert!(state(&mut view).starts_with("totals since"));
}

#[test]
fn f_shows_only_failures() {
    let mut view = view((120, 40));
    type_text(&mut view, "f");
    let screen = rows(&mut view);
    assert_eq!(screen.len(), 2, "{screen:#?}");
    assert!(screen[0].contains("12 refused by peer"), "{screen:#?}");
    assert!(
        screen[1].contains("10.244.0.15:6379") && screen[1].contains("9s ago"),
        "{screen:#?}"
    );
    assert!(state(&mut view).contains("failures only"));
    type_text(&mut view, "f");
    assert_eq!(rows(&mut view).len(), 5);
}

#[test]
fn s_sorts_by_the_next_column_and_capital_s_reverses() {
    let mut view = view((80, 24));
    let sort = |view: &mut View| {
        let line = state(view);
        let key = line.split("sorted by ").nth(1).unwrap();
        key.split("  ").next().unwrap().to_owned()
    };
    let mut seen = vec![sort(&mut view)];
    for _ in 0..4 {
        type_text(&mut view, "s");
        seen.push(sort(&mut view));
    }
    assert_eq!(seen, ["-bytes", "group", "-open", "-failed", "-bytes"]);
    type_text(&mut view, "sssS");
    assert_eq!(sort(&mut view), "failed");
    type_text(&mut view, "S");
    let screen = rows(&mut view);
    assert!(screen[0].contains("12 refused by peer"), "{screen:#?}");
    let mut wide = self::view((210, 50));
    for _ in 0..12 {
        type_text(&mut wide, "s");
    }
    assert_eq!(sort(&mut wide), "-retransmits");
    type_text(&mut wide, "ss");
    assert_eq!(sort(&mut wide), "-bytes");
}

#[test]
fn prompt_filters_like_the_command_line() {
    let mut view = view((120, 40));
    assert_eq!(type_text(&mut view, "/--port x"), None);
    assert_eq!(last_line(&mut view), "filter: --port x▏");
    assert_eq!(type_text(&mut view, "\n"), None);
    let lines = view.lines();
    assert!(lines[38].contains("--port"), "{}", lines[38]);
    assert_eq!(lines[39], "filter: --port x▏");
    press(&mut view, &[KeyCode::Backspace]);
    assert!(!view.lines()[38].contains("--port"), "a key removes the error");
    let expected = parse_prompt_filter("--port 443").unwrap();
    assert_eq!(
        type_text(&mut view, "443\n"),
        Some(UiCommand::Filter(Box::new(expected)))
    );
    assert!(state(&mut view).contains("only --port 443"), "{}", state(&mut view));
    press(&mut view, &[KeyCode::Char('/'), KeyCode::Esc]);
    assert!(state(&mut view).contains("only --port 443"), "Esc changes nothing");
    type_text(&mut view, "/");
    control(&mut view, 'u');
    assert_eq!(type_text(&mut view, "\n"), Some(UiCommand::Filter(Box::default())));
    type_text(&mut view, "/");
    press(&mut view, &[KeyCode::Up]);
    assert_eq!(last_line(&mut view), "filter: --port 443▏", "the history");
}

#[test]
fn filter_and_grouping_apply_from_the_next_window() {
    let mut table = table();
    let mut view = table.view((120, 40));
    let Some(command) = type_text(&mut view, "/--port 443\n") else {
        panic!("a command")
    };
    table.commands.send(command).unwrap();
    table.sink.watermark(WallTime(START + 10 * SECOND + 1)).unwrap();
    view.refresh();
    assert!(
        state(&mut view).starts_with("from the next window on:"),
        "{}",
        state(&mut view)
    );
    table.records(&[
        close(51, 2, "10.96.0.1:443", Outcome::Ok, 1),
        close(52, 2, "10.96.0.1:80", Outcome::Ok, 1),
    ]);
    table.end_window(2);
    view.refresh();
    let screen = rows(&mut view);
    assert_eq!(screen.len(), 1, "{screen:#?}");
    assert!(screen[0].contains("10.96.0.1:443"), "{screen:#?}");
    assert!(state(&mut view).starts_with("by workload"), "{}", state(&mut view));
    let Some(command) = type_text(&mut view, "g") else {
        panic!("a command")
    };
    table.commands.send(command).unwrap();
    table.sink.watermark(WallTime(START + 15 * SECOND + 1)).unwrap();
    table.records(&[close(53, 3, "10.96.0.1:443", Outcome::Ok, 1)]);
    table.end_window(3);
    view.refresh();
    assert!(state(&mut view).starts_with("by service"), "{}", state(&mut view));
    assert_eq!(rows(&mut view).len(), 1);
}

#[test]
fn replay_from_a_pipe_refuses_other_groups_and_filters() {
    let mut table = table();
    table.sink.finish().unwrap();
    let mut view = table.view((120, 40));
    assert_eq!(type_text(&mut view, "g"), None);
    assert!(
        last_line(&mut view).contains("run again with --by KEY"),
        "{}",
        last_line(&mut view)
    );
    view.set_notice(None);
    assert_eq!(type_text(&mut view, "/--port 443\n"), None);
    assert!(
        last_line(&mut view).contains("run again with --port 443"),
        "{}",
        last_line(&mut view)
    );
    view.set_notice(None);
    assert_eq!(type_text(&mut view, "/--nonsense\n"), None);
    assert!(last_line(&mut view).starts_with("filter: "), "an error stays an error");
}

#[test]
fn replay_from_files_is_read_again_for_other_groups() {
    let mut table = table();
    table.sink.finish().unwrap();
    let options = ViewOptions {
        can_reread: true,
        ..options()
    };
    let mut view = View::new(options, table.history.clone(), (120, 40));
    view.refresh();
    for keys in ["g", "/--port 443\n"] {
        let command = type_text(&mut view, keys).unwrap();
        table.commands.send(command).unwrap();
    }
    table.deltas = Deltas::default();
    table.sink.watermark(WallTime(START)).unwrap();
    table.records(&incident());
    table.end_window(1);
    table.sink.finish().unwrap();
    view.refresh();
    assert!(state(&mut view).starts_with("by service"), "{}", state(&mut view));
    let screen = rows(&mut view);
    assert_eq!(screen.len(), 1, "{screen:#?}");
    assert!(
        screen[0].contains("10.96.0.1:443") && screen[0].contains("12 refused by peer"),
        "{screen:#?}"
    );
    assert!(view.lines()[0].contains("up 10s"), "{:?}", view.lines());
    assert_eq!(
        table.history.lock().position(0).1,
        2,
        "the windows of the last pass alone"
    );
}

#[test]
fn g_cycles_through_all_groupings() {
    let mut view = view((120, 40));
    let mut seen = Vec::new();
    for _ in 0..11 {
        let Some(UiCommand::Regroup(by)) = type_text(&mut view, "g") else {
            panic!("a grouping")
        };
        assert!(!seen.contains(&by));
        seen.push(by);
    }
    assert_eq!(seen[0], By::new(&[Key::Service]));
    assert_eq!(seen[10], By::new(&[Key::Workload]));
}

#[test]
fn enter_shows_the_connections_of_a_group_and_esc_goes_back() {
    let mut view = view((200, 60));
    press(&mut view, &[KeyCode::Down, KeyCode::Enter]);
    let screen = rows(&mut view);
    let title = state(&mut view);
    assert!(
        title.starts_with("13 of 13 connections of 10.244.0.17 to 10.96.0.1:443"),
        "{title}"
    );
    assert!(
        !screen.is_empty() && screen.iter().all(|row| row.contains("10.244.0.17:51842")),
        "{screen:#?}"
    );
    assert!(last_line(&mut view).starts_with("Esc back"));
    assert_eq!(press(&mut view, &[KeyCode::Esc]), None);
    let back = rows(&mut view);
    assert!(back[1].starts_with('>'), "{back:#?}");
}

#[test]
fn connections_of_a_quiet_group_stay_on_its_page() {
    let mut table = table();
    let mut view = table.view((200, 60));
    press(&mut view, &[KeyCode::Down, KeyCode::Enter]);
    let before = rows(&mut view).len();
    table.records(&[close(60, 2, "10.244.0.13:9080", Outcome::Ok, 1)]);
    let mut connecting = close(9, 2, "10.96.0.1:443", Outcome::ConnectAborted, 0);
    connecting.time = WallTime(START + 5 * SECOND + 3);
    table.records(&[connecting]);
    table.end_window(2);
    table.records(&[close(61, 3, "10.244.0.13:9080", Outcome::Ok, 1)]);
    table.end_window(3);
    view.refresh();
    let screen = rows(&mut view);
    assert!(!screen.is_empty() && before > 0, "{screen:#?}");
    let title = state(&mut view);
    assert!(
        title.starts_with("the last connections of 10.244.0.17 to 10.96.0.1:443, which is quiet"),
        "{title}"
    );
}

#[test]
fn cursor_follows_its_group_and_scrolls() {
    let records: Vec<_> = (0..50_u8)
        .map(|at| close(at.into(), 0, &format!("10.0.0.{at}:80"), Outcome::Ok, u64::from(at)))
        .collect();
    let mut table = Table::new(&[Key::Workload]);
    table.records(&records);
    table.end_window(0);
    let mut view = table.view((80, 24));
    assert!(rows(&mut view)[0].contains("10.0.0.49:80"));
    press(&mut view, &[KeyCode::PageDown, KeyCode::PageDown]);
    let screen = rows(&mut view);
    let selected = screen.iter().find(|row| row.starts_with('>')).unwrap().clone();
    assert!(selected.contains("10.0.0.9:80"), "{screen:#?}");
    assert!(state(&mut view).ends_with("row 41 of 50"), "{}", state(&mut view));
    type_text(&mut view, "S");
    let screen = rows(&mut view);
    assert!(
        screen
            .iter()
            .any(|row| row.starts_with('>') && row.contains("10.0.0.9:80"))
    );
    press(&mut view, &[KeyCode::Home]);
    assert!(rows(&mut view)[0].starts_with('>'));
    press(&mut view, &[KeyCode::End, KeyCode::Up]);
    assert!(state(&mut view).ends_with("row 49 of 50"));
}

#[test]
fn notice_replaces_the_keys_until_it_is_removed() {
    let mut view = view((80, 24));
    view.set_notice(Some("lost 3 records\u{1b}".to_owned()));
    assert_eq!(last_line(&mut view), "lost 3 records\u{fffd}");
    view.set_notice(None);
    assert!(last_line(&mut view).starts_with("q quit"));
}
