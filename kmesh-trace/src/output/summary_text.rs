//! Losses and summaries as messages for standard error, without a line end.

use super::sanitize::one_line;
use crate::record::{JoinCounts, LossReason, Lost, RunInfo, Summary};
use std::fmt::Write;
use std::time::Duration;

/// Returns `lost 12 records, 40 since the start: the ring buffer was full (--buffer makes it larger)`.
pub fn lost(lost: &Lost) -> String {
    let at_most = if lost.reasons.contains(&LossReason::ProgramSkipped) {
        "at most "
    } else {
        ""
    };
    let mut text = format!("lost {at_most}{}", counted(lost.lost_records, "record"));
    if lost.lost_records_total != lost.lost_records {
        push(&mut text, format_args!(", {} since the start", lost.lost_records_total));
    }
    push_reasons(&mut text, &lost.reasons);
    text
}

/// Returns `lost 3 open events, 9 since the start: the ring buffer was full (--buffer makes it larger)`. The summary
/// counts only closes.
pub fn lost_opens(lost: u64, since_start: u64) -> String {
    let mut text = format!("lost {}", counted(lost, "open event"));
    if since_start != lost {
        push(&mut text, format_args!(", {since_start} since the start"));
    }
    push_reasons(&mut text, &[LossReason::RingFull]);
    text
}

/// Returns `1200 connections closed on worker-1 in 12.3s: 1190 delivered, 0 filtered, 10 lost, 0 after the limit; 7
/// still open` and the reasons for losses.
pub fn summary(summary: &Summary, info: &RunInfo) -> String {
    let Summary {
        closes,
        delivered,
        filtered,
        lost_records,
        after_limit,
        open,
        ..
    } = summary;
    let mut text = format!(
        "{} closed on {} in {}: {delivered} delivered, {filtered} filtered, {lost_records} lost, {after_limit} after \
         the limit; {open} still open",
        counted(*closes, "connection"),
        one_line(&info.node),
        elapsed(summary.elapsed_ns),
    );
    if let Some(not_scanned) = summary.not_scanned
        && not_scanned > 0
    {
        push(
            &mut text,
            format_args!(", {not_scanned} of them not reached by socket scans"),
        );
    }
    if summary.unresolved > 0 {
        push(
            &mut text,
            format_args!("; {} delivered without a pod's name", summary.unresolved),
        );
    }
    if summary.lost_at_most > 0 {
        push(
            &mut text,
            format_args!("; {} of the lost are an upper bound", summary.lost_at_most),
        );
    }
    push_reasons(&mut text, &summary.reasons);
    if let Some(JoinCounts {
        pairs,
        one_ended,
        ambiguous,
        early,
    }) = summary.join
    {
        push(
            &mut text,
            format_args!("; joined {pairs} with both ends, {one_ended} with one, {ambiguous} ambiguous"),
        );
        if early > 0 {
            push(
                &mut text,
                format_args!("; {early} did not wait for the other end: too many were waiting"),
            );
        }
    }
    if let Some(evicted) = summary.drops_evicted
        && evicted > 0
    {
        push(
            &mut text,
            format_args!("; {} did not fit into the kernel's map", counted(evicted, "drop count")),
        );
    }
    text
}

fn push_reasons(text: &mut String, reasons: &[LossReason]) {
    for (index, reason) in reasons.iter().enumerate() {
        text.push_str(if index == 0 { ": " } else { ", " });
        text.push_str(match reason {
            LossReason::RingFull => "the ring buffer was full (--buffer makes it larger)",
            LossReason::NoSocketStorage => "the kernel had no socket storage (sysctl net.core.optmem_max)",
            LossReason::ProgramSkipped => "the kernel skipped the tracer",
            LossReason::Undecodable => "some were damaged",
        });
    }
}

fn counted(number: u64, thing: &str) -> String {
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}

/// Returns the time in milliseconds below a minute, in seconds from there on.
fn elapsed(nanoseconds: u64) -> String {
    let elapsed = Duration::from_nanos(nanoseconds);
    if elapsed < Duration::from_secs(60) {
        format!(
            "{}s",
            f64::from(u32::try_from(elapsed.as_millis()).unwrap_or(u32::MAX)) / 1000.0
        )
    } else {
        humantime::format_duration(Duration::from_secs(elapsed.as_secs())).to_string()
    }
}

fn push(text: &mut String, more: std::fmt::Arguments<'_>) {
    let written = text.write_fmt(more);
    debug_assert!(written.is_ok(), "writing to a string cannot fail");
}

#[cfg(test)]
mod tests {
    use super::super::testing;
    use super::*;

    #[test]
    fn loss_text_names_count_total_and_reasons() {
        let cases = [
            (
                testing::lost(),
                "lost at most 12 records, 40 since the start: the ring buffer was full (--buffer makes it larger), \
                 the kernel skipped the tracer",
            ),
            (
                Lost {
                    lost_records: 1,
                    lost_records_total: 1,
                    reasons: vec![LossReason::NoSocketStorage],
                    ..testing::lost()
                },
                "lost 1 record: the kernel had no socket storage (sysctl net.core.optmem_max)",
            ),
            (
                Lost {
                    reasons: vec![LossReason::Undecodable],
                    ..testing::lost()
                },
                "lost 12 records, 40 since the start: some were damaged",
            ),
        ];
        for (lost, text) in cases {
            assert_eq!(super::lost(&lost), text);
        }
    }

    #[test]
    fn lost_open_events_have_their_own_text() {
        let why = "the ring buffer was full (--buffer makes it larger)";
        assert_eq!(lost_opens(1, 1), format!("lost 1 open event: {why}"));
        assert_eq!(
            lost_opens(3, 9),
            format!("lost 3 open events, 9 since the start: {why}")
        );
    }

    #[test]
    fn summary_text_names_every_total() {
        let one = Summary {
            closes: 1,
            delivered: 1,
            open: 0,
            ..testing::clean_summary()
        };
        let cases = [
            (
                testing::clean_summary(),
                "100 connections closed on worker-1 in 12.345s: 100 delivered, 0 filtered, 0 lost, 0 after the limit; \
                 9 still open",
            ),
            (
                one,
                "1 connection closed on worker-1 in 12.345s: 1 delivered, 0 filtered, 0 lost, 0 after the limit; \
                 0 still open",
            ),
            (
                testing::summary(),
                "100 connections closed on worker-1 in 12.345s: 80 delivered, 7 filtered, 12 lost, 1 after the limit; \
                 9 still open, 4 of them not reached by socket scans; 3 delivered without a pod's name; 2 of the lost \
                 are an upper bound: the ring buffer was full (--buffer makes it larger), the kernel skipped the \
                 tracer; 2 drop counts did not fit into the kernel's map",
            ),
        ];
        for (summary, text) in cases {
            assert_eq!(super::summary(&summary, &testing::info()), text);
        }
    }

    #[test]
    fn elapsed_time_has_milliseconds_below_a_minute() {
        let cases = [
            (0, "0s"),
            (1, "0s"),
            (5_000_000, "0.005s"),
            (59_999_999_999, "59.999s"),
            (60_000_000_000, "1m"),
            (3_723_400_000_000, "1h 2m 3s"),
        ];
        for (nanoseconds, text) in cases {
            assert_eq!(elapsed(nanoseconds), text);
        }
    }

    #[test]
    fn hostile_host_name_cannot_control_the_terminal() {
        let info = RunInfo {
            node: "a\x1b[2J\nb".to_owned(),
            ..testing::info()
        };
        let text = summary(&testing::summary(), &info);
        assert!(testing::is_harmless(&text) && !text.contains('\n'), "{text:?}");
    }
}
