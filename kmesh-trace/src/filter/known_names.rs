//! Finds the names in a filter that nothing has, to warn the user: such a filter passes no record.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Display;
use std::sync::Arc;

use super::rule::{Ends, Filter, Selectors, Terms};
use crate::record::{Labels, Pod, Record, Service};

/// The number of pods and of services that are collected from records.
const MAX_NAMES: usize = 65_536;
/// The number of similar names in a warning.
const MAX_SUGGESTIONS: usize = 5;

/// The names of the pods and services that sources, or the records of captures, contain.
#[derive(Debug, Default)]
pub struct KnownNames {
    /// The pods by UID.
    pods: HashMap<Arc<str>, Arc<Pod>>,
    /// The services by host.
    services: HashMap<Arc<str>, Arc<Service>>,
}

impl KnownNames {
    pub fn add_pod(&mut self, pod: &Arc<Pod>) {
        self.pods.insert(Arc::clone(&pod.uid), Arc::clone(pod));
    }

    pub fn add_service(&mut self, service: &Arc<Service>) {
        self.services.insert(Arc::clone(&service.host), Arc::clone(service));
    }

    /// Adds the names of a record, as long as there are not too many.
    pub fn add_record(&mut self, record: &Record) {
        let names = &record.names;
        for pod in [&names.src.pod, &names.dst.pod].into_iter().flatten() {
            let is_news = match self.pods.get(&pod.uid) {
                // A source may report the labels and the workload of a pod after its first record.
                Some(known) => {
                    (known.labels.is_none() && pod.labels.is_some())
                        || (known.workload.is_none() && pod.workload.is_some())
                }
                None => self.pods.len() < MAX_NAMES,
            };
            if is_news {
                self.add_pod(pod);
            }
        }
        if let Some(called) = &names.service
            && self.services.len() < MAX_NAMES
            && !self.services.contains_key(&called.service.host)
        {
            self.add_service(&called.service);
        }
    }

    /// Returns a warning for each value of `filter` that matches no known name, with the most similar names.
    pub fn warnings(&self, filter: &Filter) -> Vec<String> {
        if !filter.has_names() {
            return Vec::new();
        }
        if self.pods.is_empty() && self.services.is_empty() {
            let warning = "no pods and services are known, so filters by names match nothing\n  try: kmesh-trace check";
            return vec![warning.to_owned()];
        }
        let mut warnings = Vec::new();
        for pattern in values(&filter.namespaces) {
            if !self.namespaces().any(|name| pattern.matches(name)) {
                let mut warning = format!(
                    "no pod is in namespace {pattern}{}",
                    similar(pattern, self.namespaces())
                );
                if pattern.to_string() == "n" {
                    // tcpdump's -nn turns name resolution off.
                    warning += "\n  try: without -nn, which means --namespace n; this tool does not ask DNS";
                }
                warnings.push(warning);
            }
        }
        for pattern in values(&filter.pods) {
            if !self.pods.values().any(|pod| pattern.matches(pod)) {
                warnings.push(format!(
                    "no pod is named {pattern}{}",
                    similar(pattern, self.pod_names())
                ));
            }
        }
        let Ends { bare, from, to } = &filter.workloads;
        for (prefix, terms) in [("--", bare), ("--from-", from), ("--to-", to)] {
            for pattern in &terms.any {
                let mut workloads = self.pods.values().filter_map(|pod| pod.workload.as_ref());
                if !workloads.any(|workload| pattern.matches(workload)) {
                    warnings.push(self.no_workload(prefix, &pattern.to_string()));
                }
            }
        }
        for pattern in &filter.service.any {
            if !self.services.values().any(|service| pattern.matches(service)) {
                warnings.push(match self.services.is_empty() {
                    false => format!(
                        "no service is named {pattern}{}",
                        similar(pattern, self.service_names())
                    ),
                    true => format!(
                        "no services are known, so --service {pattern} matches nothing\n  \
                         try: --kubeconfig or --pods-file"
                    ),
                });
            }
        }
        let Selectors { bare, from, to } = &filter.selectors;
        let selectors = [("--selector", bare), ("--from-selector", from), ("--to-selector", to)];
        for (flag, selector) in selectors.into_iter().filter(|(_, selector)| !selector.is_empty()) {
            let mut labels = self.labels().peekable();
            if labels.peek().is_none() {
                warnings.push(format!(
                    "no labels are known, so {flag} {selector} matches nothing\n  \
                     try: --cri, --kubelet, --kubeconfig or --pods-file"
                ));
            } else if !labels.any(|labels| selector.matches(labels)) {
                let labels = self.labels().flat_map(Labels::iter);
                let labels = labels.filter(|(key, _)| selector.has_key(key));
                let labels: BTreeSet<_> = labels.map(|(key, value)| format!("{key}={value}")).collect();
                let known = similar(selector, labels.iter().map(String::as_str));
                warnings.push(format!("no pod matches {flag} {selector}{known}"));
            }
        }
        warnings
    }

    /// `prefix`: how the names of the filter's flags begin.
    fn no_workload(&self, prefix: &str, pattern: &str) -> String {
        if self.pod_names().any(|name| name == pattern) {
            return format!("no workload is named {pattern}, but a pod is\n  try: {prefix}pod {pattern}");
        }
        let workloads = self.pods.values().filter_map(|pod| pod.workload.as_ref());
        let mut names = workloads.map(|workload| &*workload.name).peekable();
        if names.peek().is_none() {
            return format!(
                "no workloads are known, so {prefix}workload {pattern} matches nothing\n  \
                 try: --kubelet, --kubeconfig or --pods-file"
            );
        }
        format!("no workload is named {pattern}{}", similar(pattern, names))
    }

    fn labels(&self) -> impl Iterator<Item = &Labels> {
        self.pods.values().filter_map(|pod| pod.labels.as_ref())
    }

    fn namespaces(&self) -> impl Iterator<Item = &str> {
        let of_pods = self.pods.values().map(|pod| &*pod.namespace);
        of_pods.chain(self.services.values().map(|service| &*service.namespace))
    }

    fn pod_names(&self) -> impl Iterator<Item = &str> {
        self.pods.values().map(|pod| &*pod.name)
    }

    fn service_names(&self) -> impl Iterator<Item = &str> {
        self.services.values().map(|service| &*service.name)
    }
}

/// Returns the positive values of a flag and of its variants for one end.
fn values<T>(ends: &Ends<T>) -> impl Iterator<Item = &T> {
    let Ends { bare, from, to } = ends;
    [bare, from, to].into_iter().flat_map(|Terms { any, .. }| any)
}

/// Returns the known names that are most similar to `pattern`, as the end of a warning. Names that contain the pattern
/// come first.
fn similar<'a>(pattern: impl Display, names: impl Iterator<Item = &'a str>) -> String {
    let pattern = pattern.to_string();
    let (_, name) = pattern.rsplit_once('/').unwrap_or(("", &pattern));
    let text = name.replace('*', "");
    let names: BTreeSet<_> = names.collect();
    let mut nearest: Vec<_> = names.into_iter().collect();
    nearest.sort_by_cached_key(|name| (!name.contains(&text), distance(&text, name)));
    let more = if nearest.len() > MAX_SUGGESTIONS { ", …" } else { "" };
    nearest.truncate(MAX_SUGGESTIONS);
    match nearest.is_empty() {
        true => String::new(),
        false => format!("; known: {}{more}", nearest.join(", ")),
    }
}

/// Returns the number of bytes to insert, delete or replace to turn one text into the other (Levenshtein distance).
fn distance(one: &str, other: &str) -> usize {
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (above, byte) in one.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], above + 1);
        for (left, other_byte) in other.bytes().enumerate() {
            let replaced = diagonal + usize::from(byte != other_byte);
            diagonal = row[left + 1];
            row[left + 1] = replaced.min(diagonal + 1).min(row[left] + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::Cli;
    use crate::record::Workload;

    fn shop() -> KnownNames {
        let mut known = KnownNames::default();
        for (namespace, workload, name) in [
            ("shop", "web", "web-7d4b9c-x2x4p"),
            ("shop", "cart", "cart-0"),
            ("pay", "ledger", "ledger-5c-abcde"),
        ] {
            known.add_pod(&Arc::new(Pod {
                uid: name.into(),
                namespace: namespace.into(),
                name: name.into(),
                workload: Some(Workload {
                    kind: "Deployment".into(),
                    name: workload.into(),
                }),
                service_account: None,
                node: None,
                host_network: None,
                labels: Some([("app", workload)].into_iter().collect()),
            }));
        }
        known
    }

    fn with_service(mut known: KnownNames) -> KnownNames {
        known.add_service(&Arc::new(Service {
            namespace: "db".into(),
            name: "database".into(),
            host: "database.db.svc.cluster.local".into(),
        }));
        known
    }

    /// Returns pods as the log folders report them: without labels and workloads.
    fn from_log_folders() -> KnownNames {
        let mut known = KnownNames::default();
        for pod in shop().pods.values() {
            known.add_pod(&Arc::new(Pod {
                workload: None,
                labels: None,
                ..Pod::clone(pod)
            }));
        }
        known
    }

    fn warnings(known: &KnownNames, arguments: &str) -> Vec<String> {
        let arguments = ["kmesh-trace"].into_iter().chain(arguments.split_whitespace());
        known.warnings(&Filter::from(&Cli::try_parse_from(arguments).unwrap().filters))
    }

    #[test]
    fn unknown_names_are_reported_with_similar_names() {
        let known = with_service(shop());
        let cases = [
            ("-n shpo", "no pod is in namespace shpo; known: shop, db, pay"),
            (
                "--to-namespace shp*",
                "no pod is in namespace shp*; known: shop, db, pay",
            ),
            (
                "--pod web",
                "no pod is named web; known: web-7d4b9c-x2x4p, cart-0, ledger-5c-abcde",
            ),
            ("--workload wbe", "no workload is named wbe; known: web, cart, ledger"),
            ("--service databse", "no service is named databse; known: database"),
            (
                "-nn",
                "no pod is in namespace n; known: db, pay, shop\n  \
                 try: without -nn, which means --namespace n; this tool does not ask DNS",
            ),
            (
                "--from-workload web-7d4b9c-x2x4p",
                "no workload is named web-7d4b9c-x2x4p, but a pod is\n  try: --from-pod web-7d4b9c-x2x4p",
            ),
            (
                "-l app=wbe",
                "no pod matches --selector app=wbe; known: app=web, app=cart, app=ledger",
            ),
            ("--from-selector tier=db", "no pod matches --from-selector tier=db"),
        ];
        for (arguments, expected) in cases {
            assert_eq!(warnings(&known, arguments), [expected], "{arguments}");
        }
    }

    #[test]
    fn known_names_and_other_filters_are_not_reported() {
        let known = with_service(shop());
        for arguments in [
            "",
            "--port 80 --comm nothing",
            "-n shop,pay --pod cart-* --workload Deployment/web --service db/database",
            "-n db",
            "-n !shpo",
            "-l app=web --to-selector !tier",
        ] {
            assert_eq!(warnings(&known, arguments), [""; 0], "{arguments}");
        }
    }

    #[test]
    fn missing_sources_are_reported_once() {
        let nothing = KnownNames::default();
        assert_eq!(warnings(&nothing, "-n a,b --pod c").len(), 1);
        assert!(warnings(&nothing, "-n a")[0].contains("kmesh-trace check"));
        assert!(warnings(&shop(), "--service web")[0].contains("--kubeconfig"));
        assert_eq!(warnings(&nothing, "-l app=web").len(), 1);
        for (arguments, expected) in [
            (
                "-l app=web",
                "no labels are known, so --selector app=web matches nothing\n  \
                 try: --cri, --kubelet, --kubeconfig or --pods-file",
            ),
            (
                "--workload web",
                "no workloads are known, so --workload web matches nothing\n  \
                 try: --kubelet, --kubeconfig or --pods-file",
            ),
        ] {
            assert_eq!(warnings(&from_log_folders(), arguments), [expected]);
        }
        assert_eq!(warnings(&nothing, "--port 80"), [""; 0]);
    }

    #[test]
    fn only_few_similar_names_are_listed() {
        let mut known = shop();
        for number in 0..9 {
            known.add_record(&crate::output::testing::in_pods_called(&format!("n{number}")));
        }
        let warning = &warnings(&known, "-n nn")[0];
        assert_eq!(warning, "no pod is in namespace nn; known: n0, n1, n2, n3, n4, …");
    }

    #[test]
    fn distance_counts_edits() {
        for (one, other, expected) in [
            ("", "", 0),
            ("abc", "abc", 0),
            ("shpo", "shop", 2),
            ("a", "", 1),
            ("", "ab", 2),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(distance(one, other), expected, "{one} {other}");
        }
    }
}
