//! The names that the records of a capture share.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use serde_json::value::RawValue;

use super::{End, Service, Text, parse};
use crate::record;

/// The maximum number of shared pods, of Services and of other names. A full table is cleared.
const MAX_SHARED: usize = 1 << 16;

/// The names that records share, so that a record with known names allocates nothing.
#[derive(Debug, Default)]
pub struct SharedNames {
    /// The pods by UID, each with the JSON text of its labels.
    pods: HashMap<Box<str>, (Arc<record::Pod>, Box<str>)>,
    /// The Services by their host.
    services: HashMap<Box<str>, Arc<record::Service>>,
    texts: HashSet<Arc<str>>,
}

impl SharedNames {
    pub fn end<P>(&mut self, end: &End<'_, P>) -> Result<record::End, String> {
        let (Some(namespace), Some(name)) = (&end.namespace, &end.pod) else {
            let node = end.node.as_ref().map(|node| self.text(&node.0));
            return Ok(record::End { pod: None, node });
        };
        let uid = end.pod_uid.as_ref().map_or("", |uid| &uid.0);
        let labels = end.labels.map_or("", RawValue::get);
        if let Some((pod, known_labels)) = self.pods.get(uid)
            && **known_labels == *labels
            && is_same_pod(pod, end)
        {
            return Ok(record::End {
                pod: Some(Arc::clone(pod)),
                node: None,
            });
        }
        let text = |text: &Option<Text<'_>>| text.as_ref().map(|text| Arc::from(&*text.0));
        let workload = text(&end.workload_kind).zip(text(&end.workload));
        let pod = Arc::new(record::Pod {
            uid: uid.into(),
            namespace: (*namespace.0).into(),
            name: (*name.0).into(),
            workload: workload.map(|(kind, name)| record::Workload { kind, name }),
            service_account: text(&end.service_account),
            node: text(&end.node),
            host_network: end.host_network,
            labels: match end.labels {
                Some(labels) => {
                    parse::<Option<HashMap<String, String>>>(labels.get())?.map(|labels| labels.into_iter().collect())
                }
                None => None,
            },
        });
        if self.pods.len() >= MAX_SHARED {
            self.pods.clear();
        }
        self.pods.insert(uid.into(), (Arc::clone(&pod), labels.into()));
        Ok(record::End {
            pod: Some(pod),
            node: None,
        })
    }

    pub fn service(&mut self, line: &Service<'_>) -> record::ServiceMatch {
        let known = self.services.get(&*line.host.0);
        let known = known.filter(|service| *service.name == *line.name.0 && *service.namespace == *line.namespace.0);
        let service = match known {
            Some(service) => Arc::clone(service),
            None => {
                let service = Arc::new(record::Service {
                    namespace: (*line.namespace.0).into(),
                    name: (*line.name.0).into(),
                    host: (*line.host.0).into(),
                });
                if self.services.len() >= MAX_SHARED {
                    self.services.clear();
                }
                self.services.insert((*line.host.0).into(), Arc::clone(&service));
                service
            }
        };
        record::ServiceMatch {
            service,
            by: line.by,
            ambiguous: line.ambiguous,
        }
    }

    pub fn text(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.texts.get(text) {
            return Arc::clone(known);
        }
        if self.texts.len() >= MAX_SHARED {
            self.texts.clear();
        }
        let text: Arc<str> = text.into();
        self.texts.insert(Arc::clone(&text));
        text
    }
}

/// Compares everything but the UID and the labels.
fn is_same_pod<P>(pod: &record::Pod, end: &End<'_, P>) -> bool {
    let same = |known: Option<&str>, text: &Option<Text<'_>>| known == text.as_ref().map(|text| &*text.0);
    let workload = pod.workload.as_ref();
    same(Some(&pod.namespace), &end.namespace)
        && same(Some(&pod.name), &end.pod)
        && same(workload.map(|workload| &*workload.name), &end.workload)
        && same(workload.map(|workload| &*workload.kind), &end.workload_kind)
        && same(pod.service_account.as_deref(), &end.service_account)
        && same(pod.node.as_deref(), &end.node)
        && pod.host_network == end.host_network
}
