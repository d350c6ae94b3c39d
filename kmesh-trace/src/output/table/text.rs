//! Names as they stand in a cell: without harmful characters, and no wider than the cell.

use std::net::{IpAddr, SocketAddr};

use unicode_segmentation::UnicodeSegmentation;
use unicode_width::UnicodeWidthStr;

use crate::output::sanitize::{Lossy, is_harmful};
use crate::record::{Direction, Service};
use crate::rollup::{GroupEnd, Row};

/// The mark of an omission.
const GAP: &str = "…";

/// Returns the number of terminal columns that `text` takes.
pub fn width(text: &str) -> usize {
    text.width()
}

/// Returns `text` in at most `max` columns. Omits the middle, because names differ at both ends. Never cuts within a
/// grapheme.
pub fn shorten(text: &str, max: usize) -> String {
    if width(text) <= max {
        return text.to_owned();
    }
    let available = max.saturating_sub(width(GAP));
    let graphemes: Vec<&str> = text.graphemes(true).collect();
    let (mut front, mut back) = (0, graphemes.len());
    let (mut front_width, mut back_width) = (0, 0);
    // Takes graphemes from both ends in turn, from the front first.
    loop {
        let is_front = front_width <= back_width;
        let at = if is_front { front } else { back - 1 };
        let more = width(graphemes[at]);
        if front_width + back_width + more > available || front == back {
            break;
        }
        if is_front {
            (front, front_width) = (front + 1, front_width + more);
        } else {
            (back, back_width) = (back - 1, back_width + more);
        }
    }
    let gap = if max == 0 { "" } else { GAP };
    [&graphemes[..front].concat(), gap, &graphemes[back..].concat()].concat()
}

/// Returns the first `max` columns of `text`.
pub fn cut(text: &str, max: usize) -> String {
    let mut available = max;
    let fits = |grapheme: &&str| {
        let fits = width(grapheme) <= available;
        available = if fits { available - width(grapheme) } else { 0 };
        fits
    };
    text.graphemes(true).take_while(fits).collect()
}

/// Returns `text` without its first `count` columns.
pub fn cut_front(text: &str, count: usize) -> String {
    let mut cut = 0;
    let is_cut = |grapheme: &&str| {
        let is_cut = cut < count;
        cut += width(grapheme);
        is_cut
    };
    text.graphemes(true).skip_while(is_cut).collect()
}

/// Replaces the characters of `text` that could control a terminal.
pub fn harmless(text: &str) -> String {
    text.replace(is_harmful, "\u{fffd}")
}

/// A name with a suffix that is never shortened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Name {
    name: String,
    suffix: String,
}

impl Name {
    /// Returns the name in at most `max` columns.
    pub fn fit(&self, max: usize) -> String {
        let suffix = width(&self.suffix);
        if suffix + 4 > max {
            return shorten(&self.whole(), max);
        }
        shorten(&self.name, max - suffix) + &self.suffix
    }

    /// Returns the whole name.
    pub fn whole(&self) -> String {
        format!("{}{}", self.name, self.suffix)
    }
}

/// Returns the name of the client of a row.
pub fn client(row: &Row) -> Name {
    if row.group.is_other() {
        return Name {
            name: "all others".to_owned(),
            suffix: String::new(),
        };
    }
    end_name(&row.group.src, None, None, process(row, Direction::Outbound))
}

/// Returns the name of the server of a row, with the port if all connections have the same.
pub fn server(row: &Row) -> Name {
    let group = &row.group;
    if group.is_other() {
        return Name {
            name: "(--max-groups)".to_owned(),
            suffix: String::new(),
        };
    }
    let port = group.dst.port.or(row.port.get().copied());
    let grouped = group.service.as_ref().and_then(|service| service.as_deref());
    // An address without a pod may be that of a Service.
    let dialled = || match group.dst.ip {
        Some(_) if group.id.is_none() => row.service.get().and_then(|service| service.as_deref()),
        _ => None,
    };
    end_name(
        &group.dst,
        port,
        grouped.or_else(dialled),
        process(row, Direction::Inbound),
    )
}

/// Returns the grouped process, if it is at this end of the connections.
fn process(row: &Row, end: Direction) -> Option<String> {
    let group = &row.group;
    if group.direction != Some(end) || (group.process.is_none() && group.pid.is_none()) {
        return None;
    }
    let comm = match group.process {
        Some(comm) => comm,
        None => row.comm.get().copied().flatten(),
    };
    let comm = comm.map_or_else(|| "?".to_owned(), |comm| Lossy(comm.as_bytes()).to_string());
    let comm = harmless(&comm);
    Some(match group.pid {
        Some(Some(pid)) => format!("{comm}/{pid}"),
        _ => comm,
    })
}

fn end_name(end: &GroupEnd, port: Option<u16>, service: Option<&Service>, process: Option<String>) -> Name {
    let port = end.port.or(port);
    let suffix = port.map(|port| format!(":{port}")).unwrap_or_default();
    let place = match service {
        Some(service) => Some(harmless(&format!("{}/{}", service.namespace, service.name))),
        None => place(end, port),
    };
    match (place, process) {
        (Some(name), Some(process)) => Name {
            name,
            suffix: format!("{suffix} {process}"),
        },
        (Some(name), None) | (None, Some(name)) => Name { name, suffix },
        (None, None) => Name {
            name: if port.is_some() { "*" } else { "-" }.to_owned(),
            suffix,
        },
    }
}

/// Returns the name of the grouped facts of an end, without the port. `None` if nothing is grouped or known.
fn place(end: &GroupEnd, port: Option<u16>) -> Option<String> {
    let qualified = |name: &str| match &end.namespace {
        Some(namespace) => harmless(&format!("{namespace}/{name}")),
        None => harmless(name),
    };
    Some(match end {
        GroupEnd { ip: Some(ip), .. } => match (ip, port) {
            (IpAddr::V6(ip), Some(_)) => {
                let bracketed = SocketAddr::new((*ip).into(), 0).to_string();
                bracketed.trim_end_matches(":0").to_owned()
            }
            _ => ip.to_string(),
        },
        GroupEnd { pod: Some(pod), .. } => qualified(pod),
        GroupEnd {
            workload: Some(workload),
            ..
        } => qualified(&workload.name),
        GroupEnd {
            namespace: Some(namespace),
            node: Some(node),
            ..
        } => format!("{} on {}", harmless(namespace), harmless(node)),
        GroupEnd {
            namespace: Some(name), ..
        }
        | GroupEnd { node: Some(name), .. } => harmless(name),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wide_text_loses_its_middle() {
        let cases = [
            ("short", 10, "short"),
            ("exactly-10", 10, "exactly-10"),
            ("productpage-v1-8499c849b9-bz9t9", 15, "product…9-bz9t9"),
            ("2001:db8:1234:5678:9abc:def0:1:2", 16, "2001:db8…ef0:1:2"),
            ("abc", 2, "a…"),
            ("abc", 1, "…"),
            ("abc", 0, ""),
            ("", 0, ""),
            // Each takes two columns, so one column stays free.
            ("日本語日本語", 8, "日本…語"),
            ("日本語日本語", 7, "日本…語"),
            ("日本", 1, "…"),
            // The family is one grapheme of several code points.
            ("👨‍👩‍👧👨‍👩‍👧👨‍👩‍👧👨‍👩‍👧", 5, "👨‍👩‍👧…👨‍👩‍👧"),
            ("e\u{301}e\u{301}e\u{301}e\u{301}", 3, "e\u{301}…e\u{301}"),
        ];
        for (text, most, expected) in cases {
            assert_eq!(shorten(text, most), expected, "{text} in {most}");
            assert!(width(&shorten(text, most)) <= most, "{text} in {most}");
        }
    }

    #[test]
    fn port_is_never_shortened() {
        let name = Name {
            name: "shop/productpage-v1".to_owned(),
            suffix: ":9080".to_owned(),
        };
        assert_eq!(name.fit(30), "shop/productpage-v1:9080");
        assert_eq!(name.fit(14), "shop…e-v1:9080");
        assert_eq!(name.fit(8), "shop…080");
    }
}
