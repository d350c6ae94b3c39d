//! The kubelet: its list of this node's pods.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use http::StatusCode;

use super::credentials::Credentials;
use super::error::{SourceError, one_line, status_name};
use super::http_client::{Connection, HttpClient};
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

/// Returns whether anything shows that this node has or had a kubelet.
pub fn is_likely() -> bool {
    let folders = [FOLDER, super::podlogs::FOLDER, SERVICE_ACCOUNT];
    folders.iter().any(|folder| Path::new(folder).exists())
}

pub struct KubeletSource {
    client: HttpClient,
    path: String,
    connection: Option<Connection>,
    /// Whether the last list had pods that are not static.
    had_other_pods: bool,
}

impl KubeletSource {
    /// Returns a source by the flags. `node` is the name of this node.
    pub fn new(kubelet: &Kubelet, node: &str) -> Result<Self> {
        let client = client(kubelet, node)?;
        check_tls(&client)?;
        let path = kubelet.url.path_and_query();
        Ok(Self {
            client,
            path: path.map_or("/pods", |path| path.as_str()).to_owned(),
            connection: None,
            had_other_pods: false,
        })
    }
}

impl PollSource for KubeletSource {
    /// Lists the pods. For about a second after it has started, a kubelet knows only its static pods: a list that
    /// suddenly has no others is complete only if the next one has none either.
    async fn list(&mut self, list: &mut List<'_>) -> Result<Listed, SourceError> {
        let answer = self.client.get(&mut self.connection, &self.path, refused).await?;
        let reader = ObjectReader::new(Writer::Kubelet, Some("Pod"));
        let mut has_other_pods = false;
        let read = list.read(answer, reader, no_list, |object| {
            has_other_pods |= matches!(object, Object::Pod(pod) if pod.static_uid.is_none());
            matches!(object, Object::Pod(_))
        });
        if read.await?.kind != "PodList" {
            return Err(no_list());
        }
        let had_other_pods = std::mem::replace(&mut self.had_other_pods, has_other_pods);
        Ok(match has_other_pods || !had_other_pods {
            true => Listed::Complete,
            false => Listed::Doubtful,
        })
    }
}

fn no_list() -> SourceError {
    SourceError::new("the answer is no PodList: is this the URL of a kubelet's /pods?")
}

fn client(kubelet: &Kubelet, node: &str) -> Result<HttpClient> {
    let is_verified = kubelet.is_verified();
    let ca = match &kubelet.ca {
        Some(ca) => Some(readable(ca, "--kubelet-ca")?),
        None => [&format!("{SERVICE_ACCOUNT}/ca.crt"), CLUSTER_CA]
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
    let mut names = vec![kubelet.url.host().unwrap_or_default().to_owned()];
    // Only the kubelet can listen here; its certificate has the node's name and hardly ever 127.0.0.1.
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
    let is_directory = File::open(path).and_then(|file| Ok(file.metadata()?.is_dir()));
    let opened = is_directory.and_then(|is_directory| match is_directory {
        true => Err(io::ErrorKind::IsADirectory.into()),
        false => Ok(()),
    });
    opened.with_context(|| format!("cannot read {} ({flag})", path.display()))?;
    Ok(path.to_owned())
}

/// Returns why a kubelet refuses, and what to do.
fn refused(status: StatusCode, body: &str) -> SourceError {
    let body = body.trim();
    let user = body
        .split_once("user=")
        .and_then(|(_, rest)| rest.split([',', ')']).next());
    let user = user.filter(|user| !user.is_empty()).unwrap_or("the user");
    let (problem, remedy) = match status {
        StatusCode::UNAUTHORIZED => (
            "the kubelet rejected the credentials".to_owned(),
            "a token (--kubelet-token) or client certificate (--kubelet-cert, --kubelet-key) that the kubelet accepts \
             and that has not expired",
        ),
        StatusCode::FORBIDDEN => (
            format!("{user} lacks the permission to get nodes/pods (in older clusters nodes/proxy)"),
            match user.starts_with("system:node:") {
                true => "a node may ask the API server: --kubeconfig=/etc/kubernetes/kubelet.conf --this-node",
                false => "grant it with a ClusterRole that has verb get on resource nodes/pods or nodes/proxy",
            },
        ),
        StatusCode::INTERNAL_SERVER_ERROR if body.starts_with("Authorization error") => (
            "the kubelet cannot check the permission, because its API server does not answer".to_owned(),
            "a client certificate, which the kubelet accepts all the same (--kubelet-cert, --kubelet-key)",
        ),
        StatusCode::BAD_REQUEST if body.contains("HTTP request to an HTTPS server") => {
            ("this port speaks https, not http".to_owned(), "--kubelet=https://…")
        }
        StatusCode::NOT_FOUND => ("this path does not exist; a kubelet's list is at /pods".to_owned(), ""),
        _ => (one_line(body), ""),
    };
    SourceError::new(format!("{}: {problem}", status_name(status))).remedy(remedy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::sources::now;
    use crate::names::sources::test_server::{Reply, client, reporter, runtime, serve};
    use crate::names::update::{Change, Kind, Scope};

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
        let error = format!("{:#}", super::client(&kubelet, "n1").err().unwrap());
        assert!(
            error.contains("--kubelet-token") && error.contains("/nonexistent/token"),
            "{error}"
        );
    }

    /// Lists with this answer of a kubelet. Returns the result and the number of pods.
    fn listed(body: String) -> (Result<Listed, String>, usize) {
        let mut source = KubeletSource {
            client: client(serve(move |_| Reply::Body(body.clone()))),
            path: "/pods".to_owned(),
            connection: None,
            had_other_pods: false,
        };
        let (reporter, changes, _reports) = reporter();
        let mut list = reporter.list(now(), Scope::All(Kind::Pods));
        let found = runtime().block_on(source.list(&mut list));
        drop(list);
        drop(reporter);
        let upserts = changes.iter().filter(|change| matches!(change, Change::Upsert(_)));
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
