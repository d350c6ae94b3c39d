//! Label sets, with Kmesh's names and order.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use prometheus_client::encoding::{EncodeLabel, EncodeLabelSet, LabelSetEncoder};

use crate::config::{CommonLabels, Level};
use crate::record::rfc3339::Rfc3339;
use crate::record::{Direction, Pod, Record, Service};

/// The value of a label whose value is unknown.
const UNKNOWN: &str = "-";
/// The value of every label of an overflow series.
pub const OTHER: &str = "other";

/// The labels of one end of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct EndLabels {
    workload: Arc<str>,
    namespace: Arc<str>,
    canonical_service: Arc<str>,
    canonical_revision: Arc<str>,
    principal: Arc<str>,
    cluster: Arc<str>,
}

impl EndLabels {
    fn all(value: &Arc<str>) -> Self {
        Self {
            workload: value.clone(),
            namespace: value.clone(),
            canonical_service: value.clone(),
            canonical_revision: value.clone(),
            principal: value.clone(),
            cluster: value.clone(),
        }
    }

    fn new(pod: Option<&Pod>, is_mutual_tls: bool, common: &CommonLabels) -> Self {
        let unknown: Arc<str> = UNKNOWN.into();
        let Some(pod) = pod else {
            return Self::all(&unknown);
        };
        let workload = pod.workload.as_ref().map_or(&unknown, |workload| &workload.name);
        let label = |keys: &[&str], otherwise: &Arc<str>| {
            let labels = pod.labels.as_ref();
            let found = keys
                .iter()
                .find_map(|key| labels?.get(key).filter(|value| !value.is_empty()));
            found.map_or_else(|| otherwise.clone(), Arc::from)
        };
        let principal = match &pod.service_account {
            Some(account) if is_mutual_tls => {
                format!("spiffe://{}/ns/{}/sa/{account}", common.trust_domain, pod.namespace).into()
            }
            _ => unknown.clone(),
        };
        Self {
            workload: workload.clone(),
            namespace: pod.namespace.clone(),
            canonical_service: label(
                &["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"],
                workload,
            ),
            canonical_revision: label(
                &[
                    "service.istio.io/canonical-revision",
                    "app.kubernetes.io/version",
                    "version",
                ],
                &"latest".into(),
            ),
            principal,
            cluster: common.cluster.clone(),
        }
    }
}

/// The label names of one end.
pub struct EndLabelNames {
    pub workload: &'static str,
    canonical_service: &'static str,
    canonical_revision: &'static str,
    pub namespace: &'static str,
    principal: &'static str,
    app: &'static str,
    version: &'static str,
    cluster: &'static str,
}

const SOURCE: EndLabelNames = EndLabelNames {
    workload: "source_workload",
    canonical_service: "source_canonical_service",
    canonical_revision: "source_canonical_revision",
    namespace: "source_workload_namespace",
    principal: "source_principal",
    app: "source_app",
    version: "source_version",
    cluster: "source_cluster",
};

pub const DESTINATION: EndLabelNames = EndLabelNames {
    workload: "destination_workload",
    canonical_service: "destination_canonical_service",
    canonical_revision: "destination_canonical_revision",
    namespace: "destination_workload_namespace",
    principal: "destination_principal",
    app: "destination_app",
    version: "destination_version",
    cluster: "destination_cluster",
};

impl EndLabels {
    fn encode(&self, names: &EndLabelNames, to: &mut LabelSetEncoder<'_>) -> fmt::Result {
        put(to, names.workload, &self.workload)?;
        put(to, names.canonical_service, &self.canonical_service)?;
        put(to, names.canonical_revision, &self.canonical_revision)?;
        put(to, names.namespace, &self.namespace)?;
        put(to, names.principal, &self.principal)?;
        // As in Kmesh, these two have the values of the canonical labels.
        put(to, names.app, &self.canonical_service)?;
        put(to, names.version, &self.canonical_revision)?;
        put(to, names.cluster, &self.cluster)
    }
}

pub fn put(to: &mut LabelSetEncoder<'_>, name: &str, value: &str) -> fmt::Result {
    (name, value).encode(to.encode_label())
}

/// The labels of the destination pod: `destination_pod_*`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct PodLabels {
    address: Arc<str>,
    namespace: Arc<str>,
    name: Arc<str>,
}

impl PodLabels {
    fn new(record: &Record) -> Self {
        let unknown: Arc<str> = UNKNOWN.into();
        match &record.names.dst.pod {
            Some(pod) => Self {
                address: record.dst.ip().to_string().into(),
                namespace: pod.namespace.clone(),
                name: pod.name.clone(),
            },
            None => Self {
                address: unknown.clone(),
                namespace: unknown.clone(),
                name: unknown,
            },
        }
    }
}

/// The labels of the destination Service: `destination_service*`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct ServiceLabels {
    host: Arc<str>,
    namespace: Arc<str>,
    name: Arc<str>,
}

impl ServiceLabels {
    fn new(service: Option<&Service>) -> Self {
        let unknown: Arc<str> = UNKNOWN.into();
        match service {
            Some(service) => Self {
                host: service.host.clone(),
                namespace: service.namespace.clone(),
                name: service.name.clone(),
            },
            None => Self {
                host: unknown.clone(),
                namespace: unknown.clone(),
                name: unknown,
            },
        }
    }
}

/// The labels of a single connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct ConnectionLabels {
    start_time: Arc<str>,
    source: Arc<str>,
    destination: Arc<str>,
}

/// The labels of a series at a [`Level`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Labels {
    reporter: &'static str,
    source: EndLabels,
    destination: EndLabels,
    pod: Option<PodLabels>,
    service: Option<ServiceLabels>,
    connection: Option<ConnectionLabels>,
    protocol: &'static str,
    policy: &'static str,
}

impl Labels {
    /// Returns the labels of `record` at `level`.
    pub fn new(record: &Record, level: Level, common: &CommonLabels) -> Self {
        let is_mutual_tls = record.is_mutual_tls();
        let end = |pod: &Option<Arc<Pod>>| EndLabels::new(pod.as_deref(), is_mutual_tls, common);
        let (names, dst) = (&record.names, record.dst);
        let pod = || PodLabels::new(record);
        let service = || ServiceLabels::new(names.service.as_ref().map(|called| &*called.service));
        Self {
            reporter: reporter(record.direction),
            source: end(&names.src.pod),
            destination: end(&names.dst.pod),
            pod: (level != Level::Service).then(pod),
            service: (level != Level::Workload).then(service),
            connection: (level == Level::Connection).then(|| ConnectionLabels {
                start_time: record
                    .start
                    .map_or(UNKNOWN.into(), |start| Rfc3339::new(start).as_str().into()),
                source: address(record.src),
                destination: address(dst),
            }),
            protocol: "tcp",
            policy: if is_mutual_tls || common.compat {
                "mutual_tls"
            } else {
                "unknown"
            },
        }
    }

    /// Returns the labels of the overflow series at `level`.
    pub fn overflow(direction: Direction, level: Level) -> Self {
        let other: Arc<str> = OTHER.into();
        let three = || (other.clone(), other.clone(), other.clone());
        Self {
            reporter: reporter(direction),
            source: EndLabels::all(&other),
            destination: EndLabels::all(&other),
            pod: (level != Level::Service)
                .then(three)
                .map(|(address, namespace, name)| PodLabels {
                    address,
                    namespace,
                    name,
                }),
            service: (level != Level::Workload)
                .then(three)
                .map(|(host, namespace, name)| ServiceLabels { host, namespace, name }),
            connection: (level == Level::Connection)
                .then(three)
                .map(|(start_time, source, destination)| ConnectionLabels {
                    start_time,
                    source,
                    destination,
                }),
            protocol: OTHER,
            policy: OTHER,
        }
    }

    /// Returns whether these are the labels of an overflow series.
    pub fn is_overflow(&self) -> bool {
        self.protocol == OTHER
    }
}

fn address(of: SocketAddr) -> Arc<str> {
    of.to_string().into()
}

/// Returns the value of the label `reporter`: the end that was traced.
pub fn reporter(direction: Direction) -> &'static str {
    match direction {
        Direction::Inbound => "destination",
        Direction::Outbound => "source",
    }
}

/// Labels and the value of `response_flags`.
pub struct LabelsWithFlags<'a> {
    pub labels: &'a Labels,
    /// The response flags: `-`, `UF` or `UC`.
    pub flags: &'static str,
}

impl EncodeLabelSet for LabelsWithFlags<'_> {
    fn encode(&self, to: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let labels = self.labels;
        put(to, "reporter", labels.reporter)?;
        if let Some(connection) = &labels.connection {
            put(to, "start_time", &connection.start_time)?;
            put(to, "source_address", &connection.source)?;
            put(to, "destination_address", &connection.destination)?;
        }
        labels.source.encode(&SOURCE, to)?;
        if let Some(pod) = &labels.pod {
            put(to, "destination_pod_address", &pod.address)?;
            put(to, "destination_pod_namespace", &pod.namespace)?;
            put(to, "destination_pod_name", &pod.name)?;
        }
        if let Some(service) = &labels.service {
            put(to, "destination_service", &service.host)?;
            put(to, "destination_service_namespace", &service.namespace)?;
            put(to, "destination_service_name", &service.name)?;
        }
        labels.destination.encode(&DESTINATION, to)?;
        put(to, "request_protocol", labels.protocol)?;
        let flags = if labels.is_overflow() { OTHER } else { self.flags };
        put(to, "response_flags", flags)?;
        put(to, "connection_security_policy", labels.policy)
    }
}

/// Returns the values of the labels for the workload of a pod and its namespace.
pub fn workload_and_namespace(pod: Option<&Pod>) -> (Arc<str>, Arc<str>) {
    let name = pod
        .and_then(|pod| pod.workload.as_ref())
        .map(|workload| workload.name.clone());
    let namespace = pod.map(|pod| pod.namespace.clone());
    (name.unwrap_or(UNKNOWN.into()), namespace.unwrap_or(UNKNOWN.into()))
}

/// The labels of the histograms: the workloads of both ends.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PairLabels {
    reporter: &'static str,
    source: (Arc<str>, Arc<str>),
    destination: (Arc<str>, Arc<str>),
}

impl PairLabels {
    /// Returns the labels of `record`.
    pub fn new(record: &Record) -> Self {
        Self {
            reporter: reporter(record.direction),
            source: workload_and_namespace(record.names.src.pod.as_deref()),
            destination: workload_and_namespace(record.names.dst.pod.as_deref()),
        }
    }

    /// Returns whether the client's end was traced. Only that end measures the handshake.
    pub fn is_of_client(&self) -> bool {
        self.reporter == reporter(Direction::Outbound)
    }

    /// Returns the labels of the overflow series.
    pub fn overflow(direction: Direction) -> Self {
        Self {
            reporter: reporter(direction),
            source: (OTHER.into(), OTHER.into()),
            destination: (OTHER.into(), OTHER.into()),
        }
    }
}

impl EncodeLabelSet for PairLabels {
    fn encode(&self, to: &mut LabelSetEncoder<'_>) -> fmt::Result {
        put(to, "reporter", self.reporter)?;
        put(to, SOURCE.workload, &self.source.0)?;
        put(to, SOURCE.namespace, &self.source.1)?;
        put(to, DESTINATION.workload, &self.destination.0)?;
        put(to, DESTINATION.namespace, &self.destination.1)
    }
}
