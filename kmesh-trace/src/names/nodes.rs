//! Whose address is a node's. Pure.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::shared::ToldBy;
use super::update::{NodeObject, SourceId};

/// All nodes.
#[derive(Debug, Default)]
pub struct Nodes {
    known: HashMap<Arc<str>, (ToldBy, Vec<IpAddr>)>,
    by_ip: HashMap<IpAddr, Arc<str>>,
}

impl Nodes {
    /// A node is so.
    pub fn is(&mut self, source: SourceId, facts: &NodeObject) {
        let ips = facts.ips.iter().map(IpAddr::to_canonical);
        let ips: Vec<_> = ips.filter(|ip| !ip.is_loopback() && !ip.is_unspecified()).collect();
        let (told, known) = self.known.entry(facts.name.as_str().into()).or_default();
        told.told(source);
        if *known != ips {
            *known = ips;
            self.index();
        }
    }

    /// It has gone.
    pub fn gone(&mut self, source: SourceId, name: &str) {
        if let Some((told, _)) = self.known.get_mut(name) {
            told.gone(source);
            self.sweep();
        }
    }

    /// A list begins.
    pub fn list_begins(&mut self, source: SourceId) {
        self.known.values_mut().for_each(|(told, _)| told.list_begins(source));
    }

    /// It is whole.
    pub fn list_ends(&mut self, source: SourceId) {
        for (told, _) in self.known.values_mut() {
            if told.is_missing(source) {
                told.gone(source);
            }
        }
        self.sweep();
    }

    /// The node with this address. Of several, which is a fault, the alphabetically first.
    pub fn at(&self, ip: IpAddr) -> Option<&Arc<str>> {
        self.by_ip.get(&ip)
    }

    fn sweep(&mut self) {
        let before = self.known.len();
        self.known.retain(|_, (told, _)| told.is_known());
        if self.known.len() != before {
            self.index();
        }
    }

    fn index(&mut self) {
        self.by_ip.clear();
        for (name, (_, ips)) in &self.known {
            for ip in ips {
                let holder = self.by_ip.entry(*ip).or_insert_with(|| Arc::clone(name));
                if name < holder {
                    *holder = Arc::clone(name);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, ips: &[&str]) -> NodeObject {
        NodeObject {
            name: name.to_owned(),
            ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
        }
    }

    #[test]
    fn an_address_is_its_nodes_while_one_source_tells_of_it() {
        let [one, other] = [SourceId(0), SourceId(1)];
        let mut nodes = Nodes::default();
        nodes.is(one, &node("b", &["10.0.0.2", "fd00::2", "127.0.0.1"]));
        nodes.is(one, &node("a", &["::ffff:10.0.0.1", "10.0.0.9"]));
        nodes.is(one, &node("c", &["10.0.0.9"]));
        nodes.is(other, &node("b", &["10.0.0.3", "fd00::2"]));
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
        nodes.list_begins(one);
        nodes.is(one, &node("c", &["10.0.0.9"]));
        nodes.list_ends(one);
        assert_eq!(at(&nodes, "10.0.0.9").as_deref(), Some("c"));
        assert_eq!(
            at(&nodes, "10.0.0.3").as_deref(),
            Some("b"),
            "the other tells of it still"
        );
        nodes.gone(other, "b");
        assert_eq!(at(&nodes, "10.0.0.3"), None);
    }
}
