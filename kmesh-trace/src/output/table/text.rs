//! Names as they stand in a cell: harmless, and no wider than there is room.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

use unicode_segmentation::UnicodeSegmentation;
use unicode_width::UnicodeWidthStr;

use crate::output::sanitize::{Lossy, is_harmful};
use crate::record::{Outcome, Service};
use crate::rollup::{Group, GroupEnd, Row};

/// Stands for what was left out.
const GAP: &str = "…";

/// How many columns of a terminal `text` takes.
pub fn width(text: &str) -> usize {
    text.width()
}

/// `text` in at most so many columns: what is left out is in the middle, since names differ at both ends. What is seen
/// as one character is never cut.
pub fn shorten(text: &str, most: usize) -> String {
    if width(text) <= most {
        return text.to_owned();
    }
    let room = most.saturating_sub(width(GAP));
    let graphemes: Vec<&str> = text.graphemes(true).collect();
    let (mut front, mut back) = (0, graphemes.len());
    let (mut front_width, mut back_width) = (0, 0);
    // From both ends in turn, the front first.
    loop {
        let is_front = front_width <= back_width;
        let at = if is_front { front } else { back - 1 };
        let more = width(graphemes[at]);
        if front_width + back_width + more > room || front == back {
            break;
        }
        if is_front {
            (front, front_width) = (front + 1, front_width + more);
        } else {
            (back, back_width) = (back - 1, back_width + more);
        }
    }
    let gap = if most == 0 { "" } else { GAP };
    [&graphemes[..front].concat(), gap, &graphemes[back..].concat()].concat()
}

/// The first so many columns of `text`.
pub fn cut(text: &str, most: usize) -> String {
    let mut room = most;
    let fits = |grapheme: &&str| {
        let fits = width(grapheme) <= room;
        room = if fits { room - width(grapheme) } else { 0 };
        fits
    };
    text.graphemes(true).take_while(fits).collect()
}

/// `text` with nothing in it that could drive a terminal.
pub fn harmless(text: &str) -> String {
    text.replace(is_harmful, "\u{fffd}")
}

/// A name, and what is added to it that must be seen whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Name {
    name: String,
    suffix: String,
}

impl Name {
    /// In at most so many columns.
    pub fn fit(&self, most: usize) -> String {
        let suffix = width(&self.suffix);
        if suffix + 4 > most {
            return shorten(&self.whole(), most);
        }
        shorten(&self.name, most - suffix) + &self.suffix
    }

    /// All of it.
    pub fn whole(&self) -> String {
        format!("{}{}", self.name, self.suffix)
    }
}

/// The client of a row.
pub fn client(row: &Row) -> Name {
    let group = &row.group;
    if group.is_other() {
        return Name {
            name: "all others".to_owned(),
            suffix: String::new(),
        };
    }
    with_process(place(&group.src, None), group, crate::record::Direction::Outbound)
}

/// The server of a row: the Service, if all called the same, else the workload or what stands for it; and the port, if
/// it is the same for all.
pub fn server(row: &Row) -> Name {
    let group = &row.group;
    if group.is_other() {
        return Name {
            name: "(--max-groups)".to_owned(),
            suffix: String::new(),
        };
    }
    let port = group.dst.port.or(row.port.get().copied());
    let grouped: Option<&Service> = group.service.as_ref().and_then(|service| service.as_deref());
    let common = || row.service.get().and_then(|service| service.as_deref());
    let is_named = group.dst.workload.is_some() || group.dst.pod.is_some();
    let name = match grouped.or_else(|| if is_named && group.id.is_none() { common() } else { None }) {
        Some(service) => Name {
            name: harmless(&format!("{}/{}", service.namespace, service.name)),
            suffix: port.map(|port| format!(":{port}")).unwrap_or_default(),
        },
        None => place(&group.dst, port),
    };
    with_process(name, group, crate::record::Direction::Inbound)
}

fn with_process(mut name: Name, group: &Group, end: crate::record::Direction) -> Name {
    if let Some(process) = &group.process
        && group.direction == Some(end)
    {
        name.suffix += " ";
        name.suffix += &match process {
            Some(comm) => harmless(&Lossy(comm.as_bytes()).to_string()),
            None => "?".to_owned(),
        };
    }
    name
}

fn place(place: &GroupEnd, port: Option<u16>) -> Name {
    let port = place.port.or(port);
    let within = |name: &str| match &place.namespace {
        Some(namespace) => harmless(&format!("{namespace}/{name}")),
        None => harmless(name),
    };
    let suffix = port.map(|port| format!(":{port}")).unwrap_or_default();
    let name = match place {
        GroupEnd { ip: Some(ip), .. } => match (ip, port) {
            (IpAddr::V6(_), Some(port)) => {
                let whole = SocketAddr::new(*ip, port).to_string();
                whole.strip_suffix(&suffix).unwrap_or(&whole).to_owned()
            }
            _ => ip.to_string(),
        },
        GroupEnd { pod: Some(pod), .. } => within(pod),
        GroupEnd {
            workload: Some(workload),
            ..
        } => within(&workload.name),
        GroupEnd {
            namespace: Some(namespace),
            node,
            ..
        } => {
            let mut name = harmless(namespace);
            if let Some(node) = node {
                let written = write!(name, " on {}", harmless(node));
                debug_assert!(written.is_ok(), "memory takes all");
            }
            name
        }
        GroupEnd { node: Some(node), .. } => harmless(node),
        _ => if port.is_some() { "*" } else { "-" }.to_owned(),
    };
    Name { name, suffix }
}

/// What went wrong, in a word or two.
pub fn failure(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Ok => "ok",
        Outcome::Refused => "refused",
        Outcome::ConnectTimeout => "no answer",
        Outcome::ConnectAborted => "gave up",
        Outcome::Unreachable => "unreachable",
        Outcome::ResetByPeer => "peer reset",
        Outcome::ResetByLocal => "reset here",
        Outcome::Timeout => "timed out",
        Outcome::Unknown => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_wide_loses_its_middle() {
        let cases = [
            ("short", 10, "short"),
            ("exactly-10", 10, "exactly-10"),
            ("productpage-v1-8499c849b9-bz9t9", 15, "product…9-bz9t9"),
            ("2001:db8:1234:5678:9abc:def0:1:2", 16, "2001:db8…ef0:1:2"),
            ("abc", 2, "a…"),
            ("abc", 1, "…"),
            ("abc", 0, ""),
            ("", 0, ""),
            // Two columns each, so that one column stays free.
            ("日本語日本語", 8, "日本…語"),
            ("日本語日本語", 7, "日本…語"),
            ("日本", 1, "…"),
            // A family is one character of several code points.
            ("👨‍👩‍👧👨‍👩‍👧👨‍👩‍👧👨‍👩‍👧", 5, "👨‍👩‍👧…👨‍👩‍👧"),
            ("e\u{301}e\u{301}e\u{301}e\u{301}", 3, "e\u{301}…e\u{301}"),
        ];
        for (text, most, expected) in cases {
            assert_eq!(shorten(text, most), expected, "{text} in {most}");
            assert!(width(&shorten(text, most)) <= most, "{text} in {most}");
        }
    }

    #[test]
    fn a_port_is_seen_whole() {
        let name = Name {
            name: "shop/productpage-v1".to_owned(),
            suffix: ":9080".to_owned(),
        };
        assert_eq!(name.fit(30), "shop/productpage-v1:9080");
        assert_eq!(name.fit(14), "shop…e-v1:9080");
        assert_eq!(name.fit(8), "shop…080");
    }
}
