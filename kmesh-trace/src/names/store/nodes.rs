//! The nodes of the cluster, by their addresses.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::reports::{ReportedBy, Reports};
use crate::names::update::{NodeObject, SourceId};

/// The nodes that sources report.
#[derive(Debug, Default)]
pub struct Nodes {
    entries: HashMap<Arc<str>, (Reports, Vec<IpAddr>)>,
    by_ip: HashMap<IpAddr, BTreeSet<Arc<str>>>,
}

impl Nodes {
    pub fn upsert(&mut self, report: ReportedBy, object: &NodeObject) {
        let ips = object.ips.iter().map(IpAddr::to_canonical);
        let ips: Vec<_> = ips.filter(|ip| !ip.is_loopback() && !ip.is_unspecified()).collect();
        let name: Arc<str> = object.name.as_str().into();
        let (reports, known) = self.entries.entry(Arc::clone(&name)).or_default();
        reports.add(report);
        if *known != ips {
            let before = std::mem::replace(known, ips.clone());
            self.unlink(&name, &before);
            for ip in ips {
                self.by_ip.entry(ip).or_default().insert(Arc::clone(&name));
            }
        }
    }

    pub fn delete(&mut self, source: SourceId, name: &str) {
        if let Some((reports, _)) = self.entries.get_mut(name) {
            reports.remove(source);
            if !reports.any()
                && let Some((name, (_, ips))) = self.entries.remove_entry(name)
            {
                self.unlink(&name, &ips);
            }
        }
    }

    /// Removes the nodes that a complete list of the source lacks.
    pub fn end_list(&mut self, list: ReportedBy) {
        let missing = self.entries.iter().filter(|(_, (reports, _))| reports.is_missing(list));
        for name in missing.map(|(name, _)| Arc::clone(name)).collect::<Vec<_>>() {
            self.delete(list.source, &name);
        }
    }

    /// Returns the node with this address. If several nodes report it (a fault of the cluster), returns the
    /// alphabetically first.
    pub fn at(&self, ip: IpAddr) -> Option<&Arc<str>> {
        self.by_ip.get(&ip)?.first()
    }

    fn unlink(&mut self, name: &str, ips: &[IpAddr]) {
        for ip in ips {
            if let Some(names) = self.by_ip.get_mut(ip) {
                names.remove(name);
                if names.is_empty() {
                    self.by_ip.remove(ip);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::WallTime;

    fn by(source: SourceId, at: i64) -> ReportedBy {
        let at = WallTime(at);
        ReportedBy { source, at }
    }

    fn node(name: &str, ips: &[&str]) -> NodeObject {
        NodeObject {
            name: name.to_owned(),
            ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
        }
    }

    #[test]
    fn address_names_its_node_while_one_source_reports_the_node() {
        let [one, other] = [SourceId(0), SourceId(1)];
        let mut nodes = Nodes::default();
        for (source, object) in [
            (one, node("b", &["10.0.0.2", "fd00::2", "127.0.0.1"])),
            (one, node("a", &["::ffff:10.0.0.1", "10.0.0.9"])),
            (one, node("c", &["10.0.0.9"])),
            (other, node("b", &["10.0.0.3", "fd00::2"])),
        ] {
            nodes.upsert(by(source, 1), &object);
        }
        let at = |nodes: &Nodes, ip: &str| nodes.at(ip.parse().unwrap()).map(|name| name.to_string());
        let cases = [
            ("10.0.0.1", Some("a")),
            ("10.0.0.2", None),
            ("10.0.0.3", Some("b")),
            ("fd00::2", Some("b")),
            ("10.0.0.9", Some("a")),
            ("127.0.0.1", None),
        ];
        for (ip, expected) in cases {
            assert_eq!(at(&nodes, ip).as_deref(), expected, "{ip}");
        }
        nodes.upsert(by(one, 2), &node("c", &["10.0.0.9"]));
        nodes.end_list(by(one, 2));
        assert_eq!(at(&nodes, "10.0.0.9").as_deref(), Some("c"));
        let name = at(&nodes, "10.0.0.3");
        assert_eq!(name.as_deref(), Some("b"), "the other source reports it");
        nodes.delete(other, "b");
        assert_eq!(at(&nodes, "10.0.0.3"), None);
        assert_eq!((nodes.entries.len(), nodes.by_ip.len()), (1, 1));
    }
}
