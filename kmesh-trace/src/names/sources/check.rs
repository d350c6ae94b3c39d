//! What `check` says of the sources of names: each is asked once.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use super::error::Failure;
use super::{cri, error, kubelet, podlogs};
use crate::config::{Origin, Source};
use crate::privileges::{HELPS, has};

/// The longest time to wait for one.
const PATIENCE: Duration = Duration::from_secs(5);

/// A line a capability that helps, and a line a source: those of this node, which are asked, and the one that must be named.
pub fn check(sources: &[Source]) -> std::io::Result<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut text = String::new();
    for help in HELPS {
        let found = if has(&help) == Some(true) { "ok" } else { "no" };
        // Writing to a string cannot fail.
        _ = writeln!(text, "{found:<9}{:<20}{}", help.name, help.purpose);
    }
    for source in sources {
        let (label, pods) = runtime.block_on(async {
            let (label, pods) = ask(&source.origin);
            let pods = tokio::time::timeout(PATIENCE, pods).await;
            (
                label,
                pods.unwrap_or_else(|_| Err(Failure::new("no answer".to_owned()))),
            )
        });
        _ = match pods {
            Ok(pods) => writeln!(text, "ok       {:<14}{label}: {pods} pods", "names"),
            Err(why) => writeln!(text, "no       {:<14}{label}: {}", "names", why.in_one_line()),
        };
    }
    _ = writeln!(
        text,
        "no       {:<14}the API server is asked only with --kubeconfig; {}",
        "names",
        kubeconfig()
    );
    Ok(text)
}

fn ask(place: &Origin) -> (String, impl Future<Output = Result<usize, Failure>>) {
    let label = match place {
        Origin::Cri(_) => "the container runtime".to_owned(),
        Origin::Kubelet(kubelet) => format!("the kubelet at {}", kubelet.url),
        Origin::PodLogs => format!("the log folders in {}", podlogs::FOLDER),
        Origin::ApiServer(_) | Origin::File(_) => String::new(),
    };
    let asked = async move {
        match place {
            Origin::Cri(sockets) => cri::Source::new(sockets).pods().await.map(|pods| pods.len()),
            Origin::Kubelet(kubelet) => {
                let settings = kubelet::Settings::new(kubelet, &super::node_name());
                let settings = settings.map_err(|error| Failure::new(format!("{error:#}")))?;
                settings
                    .source()?
                    .pods()
                    .await
                    .map(|pods| pods.unwrap_or_default().len())
            }
            Origin::PodLogs => podlogs::list(Path::new(podlogs::FOLDER))
                .map(|pods| pods.len())
                .map_err(|error| Failure::new(error::io(&error))),
            Origin::ApiServer(_) | Origin::File(_) => Ok(0),
        }
    };
    (label, asked)
}

/// What `--kubeconfig` would take. It is not read: whose it is did not ask for that.
fn kubeconfig() -> String {
    if std::env::var_os("KUBECONFIG").is_some_and(|value| !value.is_empty()) {
        return "$KUBECONFIG is set".to_owned();
    }
    let home = std::env::home_dir().map(|home| home.join(".kube/config"));
    match home.filter(|path| path.exists()) {
        Some(path) => format!("{} is there", path.display()),
        None if std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() => {
            "this pod's service account is there".to_owned()
        }
        None => "no kubeconfig is there, so it wants a path".to_owned(),
    }
}
