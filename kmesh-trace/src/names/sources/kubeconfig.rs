//! Names from an API server: pods, Services and what ties them together, listed and then watched.

use std::borrow::Cow;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures_util::Stream;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::ClusterResourceScope;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Config, Resource};
use serde::Deserialize;

use super::body_limit::Bounded;
use super::ca_roots;
use super::error::{Failure, of_client};
use crate::config::ApiServer;
use crate::names::objects::{EndpointSlice, Endpoints, Job, KubeObject, Meta, Node, Pod, ReplicaSet, Service};

/// Longer than the longest silence of a watch that is well: the server ends each after less than five minutes.
const SILENCE: Duration = Duration::from_secs(300);

/// An object and where the API server has it.
pub trait Served: KubeObject + Clone + std::fmt::Debug + Send + Sync + 'static {
    /// `apiVersion`'s group; empty for the core.
    const GROUP: &'static str;
    /// `apiVersion`'s version.
    const VERSION: &'static str = "v1";
    /// The resource, as permissions name it.
    const RESOURCE: &'static str;
}

macro_rules! served {
    ($($kind:ty: $group:literal $resource:literal),* $(,)?) => {$(
        impl Served for $kind {
            const GROUP: &'static str = $group;
            const RESOURCE: &'static str = $resource;
        }
    )*};
}

served! {
    Pod: "" "pods",
    Service: "" "services",
    EndpointSlice: "discovery.k8s.io" "endpointslices",
    Endpoints: "" "endpoints",
    ReplicaSet: "apps" "replicasets",
    Job: "batch" "jobs",
    Node: "" "nodes",
}

/// An object with as much of its metadata as watching needs.
#[derive(Clone, Debug)]
pub struct Watched<T> {
    meta: ObjectMeta,
    /// The object.
    pub object: T,
}

impl<'de, T: Served> Deserialize<'de> for Watched<T> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let object = T::deserialize(deserializer)?;
        let Meta {
            namespace,
            name,
            resource_version,
            ..
        } = object.meta().clone();
        let meta = ObjectMeta {
            namespace,
            name,
            resource_version,
            ..ObjectMeta::default()
        };
        Ok(Self { meta, object })
    }
}

impl<T: Served> Resource for Watched<T> {
    type DynamicType = ();
    type Scope = ClusterResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        T::KIND.into()
    }

    fn group((): &()) -> Cow<'_, str> {
        T::GROUP.into()
    }

    fn version((): &()) -> Cow<'_, str> {
        T::VERSION.into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        T::RESOURCE.into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.meta
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.meta
    }
}

/// An API server that can be asked.
#[derive(Clone)]
pub struct Source {
    client: Client,
    node: Option<String>,
}

/// The settings that the flags name, and the files that those name.
pub async fn settings(api_server: &ApiServer) -> Result<Config> {
    let mut config = client_config(api_server).await?;
    config.connect_timeout = Some(Duration::from_secs(10));
    config.read_timeout = Some(SILENCE);
    config.reset_reader_on_write = true;
    ca_roots::only_where_needed(&mut config);
    Ok(config)
}

/// An API server as a person would write it.
pub fn url(config: &Config) -> String {
    config.cluster_url.to_string().trim_end_matches('/').to_owned()
}

impl Source {
    /// An exec plugin is run here, and again when what it gave expires.
    pub fn new(config: Config, node: Option<String>) -> Result<Self, Failure> {
        let client = Client::try_from(config).map_err(|error| of_client(&error))?;
        // All that is asked for is the whole cluster's.
        let client = Client::new(Bounded(client), "default");
        Ok(Self { client, node })
    }

    /// Only one node's pods are asked for, and what its own credentials allow besides.
    pub fn is_of_one_node(&self) -> bool {
        self.node.is_some()
    }

    /// All objects of a kind, then what changes, for as long as it is polled.
    pub fn watch<T: Served>(&self) -> impl Stream<Item = watcher::Result<watcher::Event<Watched<T>>>> + use<T> {
        let api = Api::<Watched<T>>::all(self.client.clone());
        let mut config = watcher::Config::default();
        if let Some(node) = self.node.as_deref().filter(|_| T::RESOURCE == Pod::RESOURCE) {
            config = config.fields(&format!("spec.nodeName={node}"));
        }
        watcher(api, config).default_backoff()
    }
}

async fn client_config(api_server: &ApiServer) -> Result<Config> {
    let options = KubeConfigOptions {
        context: api_server.context.clone(),
        ..KubeConfigOptions::default()
    };
    let (kubeconfig, from) = match &api_server.kubeconfig {
        Some(path) => (read(path)?, path.display().to_string()),
        None => match found()? {
            Some(found) => found,
            None => return in_pod(api_server.context.as_deref()),
        },
    };
    Config::from_custom_kubeconfig(kubeconfig, &options)
        .await
        .with_context(|| format!("{from} (--kubeconfig) cannot be used"))
}

fn read(path: &Path) -> Result<Kubeconfig> {
    Kubeconfig::read_from(path).with_context(|| format!("cannot use {} (--kubeconfig)", path.display()))
}

/// As kubectl finds it.
fn found() -> Result<Option<(Kubeconfig, String)>> {
    if let Some(kubeconfig) = Kubeconfig::from_env().context("cannot use $KUBECONFIG (--kubeconfig)")? {
        return Ok(Some((kubeconfig, "$KUBECONFIG".to_owned())));
    }
    let path = std::env::home_dir().map(|home| home.join(".kube/config"));
    let path = path.filter(|path| path.exists());
    path.map(|path| Ok((read(&path)?, path.display().to_string())))
        .transpose()
}

fn in_pod(context: Option<&str>) -> Result<Config> {
    if context.is_some() {
        bail!("--context: there is no kubeconfig, neither $KUBECONFIG nor ~/.kube/config\n  try: --kubeconfig=PATH");
    }
    Config::incluster().map_err(|_| {
        anyhow::anyhow!(
            "--kubeconfig: there is none, neither $KUBECONFIG nor ~/.kube/config, and no service account of a pod\n  \
             try: --kubeconfig=PATH (sudo has another home and keeps no variables)"
        )
    })
}

/// Why a kind is not told of, and whether it is the permission that is missing, or the kind.
#[derive(Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Nothing to speak of: what was remembered is too old, and all is listed again.
    Stale,
    /// Not without a permission.
    Forbidden(Failure),
    /// There is no such kind at this server.
    Unknown,
    /// Something else.
    Other(Failure),
}

/// What an error of a watch means.
pub fn trouble<T: Served>(error: &watcher::Error) -> Trouble {
    let error = match error {
        watcher::Error::WatchError(status) => {
            return match status.code {
                410 => Trouble::Stale,
                _ => Trouble::Other(of_client(&kube::Error::Api(status.clone()))),
            };
        }
        watcher::Error::NoResourceVersion => {
            return Trouble::Other(Failure::new("what answers is no API server".to_owned()));
        }
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => error,
    };
    match error {
        kube::Error::Api(status) if status.code == 410 => Trouble::Stale,
        kube::Error::Api(status) if status.code == 404 => Trouble::Unknown,
        kube::Error::Api(status) if status.code == 403 => {
            let user = status
                .message
                .split_once("User \"")
                .and_then(|(_, rest)| rest.split('"').next());
            let who = user.map_or_else(|| "who asks".to_owned(), super::error::one_line);
            let resource = [T::RESOURCE, T::GROUP].join(if T::GROUP.is_empty() { "" } else { "." });
            let failure = Failure::new(format!("403: {who} lacks the permission to list and watch {resource}"));
            Trouble::Forbidden(match who.starts_with("system:node:") {
                true => failure.remedy("--this-node: a node may ask for its own pods"),
                false => failure.remedy("grant it with a ClusterRole"),
            })
        }
        error => Trouble::Other(of_client(error)),
    }
}
