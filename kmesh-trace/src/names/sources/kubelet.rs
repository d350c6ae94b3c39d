//! The kubelet: its list of this node's pods.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use http::StatusCode;

use super::credentials::Credentials;
use super::error::{SourceError, one_line, status_name};
use super::http_client::{ANSWER_TIMEOUT, Connection, HttpClient};
use super::kubeconfig::{SERVICE_ACCOUNT, check_tls};
use super::poll::{Listed, PollSource};
use super::reporter::List;
use super::tls::{Identity, Pem, TlsSettings};
use crate::config::Kubelet;
use crate::names::objects::Writer;
use crate::names::objects::object_list::ObjectReader;
use crate::names::update::Object;

/// The folder of a kubelet that was not given another one.
const FOLDER: &str = "/var/lib/kubelet";
/// Where kubeadm stores the cluster's CA certificate on a node.
const CLUSTER_CA: &str = "/etc/kubernetes/pki/ca.crt";

/// Whether anything shows that this node has or had a kubelet.
pub fn is_likely() -> bool {
    [FOLDER, super::podlogs::FOLDER, SERVICE_ACCOUNT]
        .iter()
        .any(|folder| Path::new(folder).exists())
}

/// A kubelet that can be asked.
pub struct KubeletSource {
    client: HttpClient,
    path: String,
    connection: Option<Connection>,
    /// Whether the last list had pods that are not static.
    had_other_pods: bool,
}

impl KubeletSource {
    /// Returns a source as the flags say. `node` is the name of this node.
    pub fn new(kubelet: &Kubelet, node: &str) -> Result<Self> {
        let client = client(kubelet, node)?;
        check_tls(&client)?;
        Ok(Self {
            client,
            path: kubelet
                .url
                .path_and_query()
                .map_or("/pods", |path| path.as_str())
                .to_owned(),
            connection: None,
            had_other_pods: false,
        })
    }
}

impl PollSource for KubeletSource {
    /// Lists the pods. For about a second after it has started, a kubelet knows only its static pods: a list that suddenly has
    /// no others is complete only if the next one has none either.
    async fn list(&mut self, list: &mut List<'_>) -> Result<Listed, SourceError> {
        let mut answer = self.client.get(&mut self.connection, &self.path, refused).await?;
        let mut reader = ObjectReader::new(Writer::Kubelet, Some("Pod"));
        let mut has_other_pods = false;
        while let Some(part) = answer.part(ANSWER_TIMEOUT).await? {
            let read = reader.feed(&part, &mut |object| {
                if let Object::Pod(pod) = &object {
                    has_other_pods |= pod.static_uid.is_none();
                    list.upsert(object);
                }
            });
            read.map_err(|error| no_list().because(&error.to_string()))?;
            list.flush()?;
        }
        reader.finish().map_err(|error| no_list().because(&error.to_string()))?;
        if reader.list.is_none_or(|list| list.kind != "PodList") {
            return Err(no_list());
        }
        list.left_out(reader.left_out);
        let had_other_pods = std::mem::replace(&mut self.had_other_pods, has_other_pods);
        Ok(match has_other_pods || !had_other_pods {
            true => Listed::Complete,
            false => Listed::Doubtful,
        })
    }
}

fn no_list() -> SourceError {
    SourceError::new("the answer is no PodList: is this the URL of a kubelet's /pods?".to_owned())
}

fn client(kubelet: &Kubelet, node: &str) -> Result<HttpClient> {
    let is_verified = kubelet.is_verified();
    let ca = match &kubelet.ca {
        Some(ca) => Some(readable(ca, "--kubelet-ca")?),
        None => [format!("{SERVICE_ACCOUNT}/ca.crt"), CLUSTER_CA.to_owned()]
            .into_iter()
            .map(PathBuf::from)
            .find(|path| path.exists()),
    };
    let identity = match &kubelet.identity {
        Some((certificate, key)) => Some(Identity {
            certificate: Pem::File(readable(certificate, "--kubelet-cert")?),
            key: Pem::File(readable(key, "--kubelet-key")?),
        }),
        None => None,
    };
    let host = kubelet.url.host().unwrap_or_default().to_owned();
    let mut names = vec![host];
    // Nobody else can listen here as the kubelet; its certificate has the node's name and hardly ever 127.0.0.1.
    if kubelet.is_loopback() && is_verified {
        names.push(node.to_owned());
    }
    let mut server = kubelet.url.clone().into_parts();
    server.path_and_query = Some(http::uri::PathAndQuery::from_static("/"));
    let token = match &kubelet.token {
        Some(token) => Some(readable(token, "--kubelet-token")?),
        None => Some(Path::new(SERVICE_ACCOUNT).join("token"))
            .filter(|token| identity.is_none() && kubelet.may_have_own_token() && token.exists()),
    };
    Ok(HttpClient {
        server: http::Uri::from_parts(server).context("not a URL")?,
        tls: TlsSettings {
            ca: ca.filter(|_| is_verified).map(Pem::File),
            identity,
            insecure: kubelet.insecure,
            names,
        },
        proxy: None,
        credentials: token.map_or(Credentials::None, Credentials::TokenFile),
        headers: Vec::new(),
    })
}

/// Checks that a file of the command line can be read.
fn readable(path: &Path, flag: &str) -> Result<PathBuf> {
    std::fs::File::open(path)
        .and_then(|file| match file.metadata()?.is_dir() {
            true => Err(io::ErrorKind::IsADirectory.into()),
            false => Ok(()),
        })
        .with_context(|| format!("cannot read {} ({flag})", path.display()))?;
    Ok(path.to_owned())
}

/// Says why a kubelet refuses, and what to do.
fn refused(status: StatusCode, body: &str) -> SourceError {
    let body = body.trim();
    let name = status_name(status);
    let user = body
        .split_once("user=")
        .map(|(_, rest)| rest.split([',', ')']).next().unwrap_or_default());
    match status {
        StatusCode::UNAUTHORIZED => SourceError::new(format!("{name}: the kubelet rejected the credentials")).remedy(
            "a token (--kubelet-token) or client certificate (--kubelet-cert, --kubelet-key) that the kubelet accepts and that has not expired",
        ),
        StatusCode::FORBIDDEN => {
            let user = user.filter(|user| !user.is_empty()).unwrap_or("the user");
            let error = SourceError::new(format!(
                "{name}: {user} lacks the permission to get nodes/pods (in older clusters nodes/proxy)"
            ));
            if user.starts_with("system:node:") {
                error.remedy("a node may ask the API server: --kubeconfig=/etc/kubernetes/kubelet.conf --this-node")
            } else {
                error.remedy("grant it with a ClusterRole that has verb get on resource nodes/pods or nodes/proxy")
            }
        }
        StatusCode::INTERNAL_SERVER_ERROR if body.starts_with("Authorization error") => SourceError::new(format!(
            "{name}: the kubelet cannot check the permission, because its API server does not answer"
        ))
        .remedy("a client certificate, which the kubelet accepts all the same (--kubelet-cert, --kubelet-key)"),
        StatusCode::BAD_REQUEST if body.contains("HTTP request to an HTTPS server") => {
            SourceError::new(format!("{name}: this port speaks https, not http")).remedy("--kubelet=https://…")
        }
        StatusCode::NOT_FOUND => {
            SourceError::new(format!("{name}: this path does not exist; a kubelet's list is at /pods"))
        }
        _ => SourceError::new(format!("{name}: {}", one_line(body))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_say_what_is_missing() {
        let cases = [
            (
                401,
                "Unauthorized",
                "401 Unauthorized: the kubelet rejected",
                "--kubelet-token",
            ),
            (
                403,
                "Forbidden (user=system:serviceaccount:a:b, verb=get, resource=nodes, subresource=proxy)",
                "system:serviceaccount:a:b lacks the permission to get nodes/pods (in older clusters nodes/proxy)",
                "ClusterRole",
            ),
            (
                403,
                "Forbidden (user=system:node:n1, verb=get, resource=nodes, subresource(s)=[pods proxy])",
                "system:node:n1",
                "--kubeconfig=/etc/kubernetes/kubelet.conf --this-node",
            ),
            (403, "", "the user lacks", "ClusterRole"),
            (
                500,
                "Authorization error (user=kmesh-viewer, verb=get, resource=nodes, subresource=proxy)",
                "its API server does not answer",
                "certificate",
            ),
            (
                400,
                "Client sent an HTTP request to an HTTPS server.\n",
                "speaks https",
                "https",
            ),
            (404, "404 page not found", "/pods", ""),
            (503, "a\u{1b}[31m\u{202e}\nb", "503 Service Unavailable: a[31m", ""),
            (
                403,
                "(user=\u{1b}[2J\nkmesh-trace: x)",
                r"403 Forbidden: \u001b[2J\u000akmesh-trace: x lacks",
                "",
            ),
        ];
        for (status, body, problem, remedy) in cases {
            let error = refused(StatusCode::from_u16(status).unwrap(), body).to_string();
            assert!(
                error.contains(problem) && error.contains(remedy),
                "{status} {body}: {error}"
            );
        }
    }

    #[test]
    fn files_that_flags_name_must_be_there() {
        let missing = PathBuf::from("/nonexistent/token");
        let kubelet = Kubelet {
            url: http::Uri::from_static("https://127.0.0.1:10250/pods"),
            token: Some(missing),
            ca: None,
            identity: None,
            insecure: true,
        };
        let error = format!("{:#}", client(&kubelet, "n1").err().unwrap());
        assert!(
            error.contains("--kubelet-token") && error.contains("/nonexistent/token"),
            "{error}"
        );
    }

    /// What a kubelet answers; the number of upserts, and what was left out.
    fn listed(body: String) -> (Result<Listed, String>, usize) {
        use std::sync::mpsc::channel;

        use crate::names::sources::reporter::Reporter;
        use crate::names::sources::test_server::{Reply, client, serve};
        use crate::names::update::{Change, Kind, Scope, SourceId, SourceUpdate};

        let mut source = KubeletSource {
            client: client(serve(move |_| Reply::Body(body.clone()))),
            path: "/pods".to_owned(),
            connection: None,
            had_other_pods: false,
        };
        let (updates, received) = channel();
        let store = move |batch: Vec<SourceUpdate>| {
            batch.into_iter().for_each(|update| _ = updates.send(update.change));
            std::ops::ControlFlow::Continue(())
        };
        let (reports, _received) = channel();
        let reporter = Reporter::new(SourceId(0), std::sync::Arc::new(store), reports);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let mut list = reporter.list(crate::names::sources::now(), Scope::All(Kind::Pods));
        let found = runtime.block_on(source.list(&mut list));
        drop(list);
        drop(reporter);
        let upserts = received.iter().filter(|change| matches!(change, Change::Upsert(_)));
        (found.map_err(|error| error.to_string()), upserts.count())
    }

    /// 50 pods of 1.4 MB each, as tenants may create them, are 70 MB.
    #[test]
    fn large_pods_do_not_end_the_names_of_a_node() {
        let pod = |number| {
            let value = "y".repeat(1_400_000);
            format!(
                r#"{{"metadata":{{"uid":"u{number}","name":"a"}},"spec":{{"containers":[{{"args":["{value}"]}}]}}}}"#
            )
        };
        let pods: Vec<_> = (0..50).map(pod).collect();
        let body = format!(r#"{{"kind":"PodList","items":[{},{{}}]}}"#, pods.join(","));
        assert_eq!(listed(body), (Ok(Listed::Complete), 50));
    }

    #[test]
    fn answer_that_is_no_list_of_pods_is_an_error() {
        for body in [
            r#"{"kind":"NodeList","items":[]}"#,
            r#"{"kind":"PodList","items":[{}"#,
            "\"pods\"",
            "<html>",
            "",
        ] {
            let (found, upserts) = listed(body.to_owned());
            assert!(
                found.is_err_and(|error| error.contains("no PodList")) && upserts == 0,
                "{body}"
            );
        }
    }
}
