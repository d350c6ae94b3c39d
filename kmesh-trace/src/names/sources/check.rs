//! What `check` prints about the sources of names: it asks each one once.

use std::fmt::Write as _;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

use super::error::SourceError;
use super::poll::PollSource;
use super::reporter::{Reporter, UpdateSink};
use super::{cri, kubelet, label, podlogs};
use crate::config::{Origin, SourceConfig};
use crate::names::update::{Change, Kind, Scope, SourceId, SourceUpdate};
use crate::privileges::{OPTIONAL_NEEDS, has};

/// The longest time for one source.
const SOURCE_TIMEOUT: Duration = Duration::from_secs(5);

/// Returns a line for each capability that helps, for each source of this node, and for the API server.
pub fn check(sources: &[SourceConfig]) -> std::io::Result<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut text = String::new();
    // Writing to a string cannot fail.
    for need in OPTIONAL_NEEDS {
        let found = if has(&need) == Some(true) { "ok" } else { "no" };
        _ = writeln!(text, "{found:<9}{:<20}{}", need.name, need.purpose);
    }
    for source in sources {
        // A line must not name a socket that is not the one that answers.
        let label = match &source.origin {
            Origin::Cri(_) => "the container runtime".to_owned(),
            origin => label(origin),
        };
        let pods = runtime.block_on(async { tokio::time::timeout(SOURCE_TIMEOUT, ask(&source.origin)).await });
        let pods = pods.unwrap_or_else(|_| Err(SourceError::new("no answer")));
        _ = match pods {
            Ok(pods) => writeln!(text, "ok       {:<14}{label}: {pods} pods", "names"),
            Err(error) => writeln!(text, "no       {:<14}{label}: {}", "names", error.in_one_line()),
        };
    }
    let found = kubeconfig();
    _ = writeln!(
        text,
        "no       {:<14}the API server is asked only with --kubeconfig; {found}",
        "names"
    );
    Ok(text)
}

/// Asks a source once. Returns the number of its pods.
async fn ask(origin: &Origin) -> Result<usize, SourceError> {
    match origin {
        Origin::Cri(sockets) => count(cri::CriSource::new(sockets)).await,
        Origin::Kubelet(kubelet) => {
            let source = kubelet::KubeletSource::new(kubelet, &super::node_name());
            count(source.map_err(|error| SourceError::new(format!("{error:#}")))?).await
        }
        Origin::PodLogs => count(podlogs::PodLogsSource).await,
        Origin::ApiServer(_) | Origin::File(_) => Ok(0),
    }
}

async fn count(mut source: impl PollSource) -> Result<usize, SourceError> {
    let pods = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&pods);
    let store: UpdateSink = Arc::new(move |updates: Vec<SourceUpdate>| {
        let is_pod = |update: &&SourceUpdate| matches!(update.change, Change::Upsert(_));
        counter.fetch_add(updates.iter().filter(is_pod).count(), Ordering::Relaxed);
        ControlFlow::Continue(())
    });
    let reporter = Reporter::new(SourceId(0), store, channel().0);
    let mut list = reporter.list(super::now(), Scope::All(Kind::Pods));
    source.list(&mut list).await?;
    list.flush();
    Ok(pods.load(Ordering::Relaxed))
}

/// Says what `--kubeconfig` would use. The kubeconfig is not read without that flag.
fn kubeconfig() -> String {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let path = std::env::home_dir().map(|home| home.join(".kube/config"));
    match path.filter(|path| path.exists()) {
        _ if is_set("KUBECONFIG") => "$KUBECONFIG is set".to_owned(),
        Some(path) => format!("{} exists", path.display()),
        None if is_set("KUBERNETES_SERVICE_HOST") => "this pod has a service account".to_owned(),
        None => "no kubeconfig was found, so the flag needs a path".to_owned(),
    }
}
