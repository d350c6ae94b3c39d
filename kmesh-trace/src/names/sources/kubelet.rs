//! Names from a kubelet: its list of this node's pods.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Limited};
use kube::client::Body;
use kube::config::AuthInfo;
use kube::{Client, Config};

use super::ca_roots;
use super::error::{Failure, is_for_another_name, of_client, one_line};
use crate::config::Kubelet;
use crate::names::objects::list;
use crate::names::update::{Object, PodObject};

/// What a pod is given to show who it is, and whom to trust.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// A kubelet's own folder, if it was not told another.
const FOLDER: &str = "/var/lib/kubelet";
/// Where kubeadm keeps the cluster's certificate on a node.
const CLUSTER_CA: &str = "/etc/kubernetes/pki/ca.crt";
/// The longest answer. A node has some hundred pods, of some kilobytes each.
const MOST_BYTES: usize = 64 << 20;
/// The longest time to wait for all of an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// How to ask a kubelet: the files that flags name are there.
pub struct Settings {
    /// One for each name that its certificate may have.
    configs: Vec<Config>,
    url: http::Uri,
}

impl Settings {
    /// As the flags say. This is the node's own name.
    pub fn new(kubelet: &Kubelet, node: &str) -> Result<Self> {
        let config = client_config(kubelet)?;
        let mut configs = vec![config.clone()];
        // Which kubelet it is, is known; certificates have the node's name in them and hardly ever 127.0.0.1.
        if kubelet.is_loopback() && kubelet.is_verified() {
            let mut by_name = config;
            by_name.tls_server_name = Some(node.to_owned());
            configs.push(by_name);
        }
        Ok(Self {
            configs,
            url: kubelet.url.clone(),
        })
    }

    /// One that can be asked. Wants a runtime to be entered.
    pub fn source(self) -> Result<Source, Failure> {
        let clients = self.configs.into_iter().map(Client::try_from).collect::<Result<_, _>>();
        Ok(Source {
            clients: clients.map_err(|error| of_client(&error))?,
            url: self.url,
            had_pods_of_api: false,
        })
    }
}

/// Whether anything shows that a kubelet is, or was, on this node.
pub fn shows() -> bool {
    [FOLDER, super::podlogs::FOLDER, SERVICE_ACCOUNT]
        .iter()
        .any(|folder| Path::new(folder).exists())
}

/// A kubelet that can be asked.
pub struct Source {
    clients: Vec<Client>,
    url: http::Uri,
    /// Of API servers' pods, the last list had some.
    had_pods_of_api: bool,
}

impl Source {
    /// The pods of this node; none when it should be asked once more before it is believed. For about a second after it has
    /// started, a kubelet knows only its static pods: who had others and has none any more is believed the second time.
    pub async fn pods(&mut self) -> Result<Option<Vec<PodObject>>, Failure> {
        let pods = self.list().await?;
        let has = pods.iter().any(|pod| pod.static_uid.is_none());
        let had = std::mem::replace(&mut self.had_pods_of_api, has);
        Ok((has || !had).then_some(pods))
    }

    async fn list(&self) -> Result<Vec<PodObject>, Failure> {
        tokio::time::timeout(PATIENCE, self.ask()).await.unwrap_or_else(|_| {
            Err(Failure::new(format!(
                "it has not answered for {} s",
                PATIENCE.as_secs()
            )))
        })
    }

    async fn ask(&self) -> Result<Vec<PodObject>, Failure> {
        let path = self.url.path_and_query().map_or("/pods", |path| path.as_str());
        let mut answer = None;
        let mut refused = None;
        for client in &self.clients {
            let request = Request::get(path).body(Body::empty());
            let request = request.map_err(|error| Failure::new(error.to_string()))?;
            match client.send(request).await {
                Ok(found) => {
                    answer = Some(found);
                    break;
                }
                // Of the names that it does not have, the one in the URL is the one to speak of.
                Err(error) if is_for_another_name(&error) => _ = refused.get_or_insert_with(|| of_client(&error)),
                Err(error) => return Err(of_client(&error)),
            }
        }
        let Some(answer) = answer else {
            return Err(refused.unwrap_or_else(|| Failure::new("there is no way to ask it".to_owned())));
        };
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MOST_BYTES);
        let body = body.collect().await.map_err(|error| {
            Failure::new(format!(
                "its answer broke off, or has more than {} MiB: {error}",
                MOST_BYTES >> 20
            ))
        })?;
        let body = body.to_bytes();
        if status != StatusCode::OK {
            return Err(denied(status, &String::from_utf8_lossy(&body)));
        }
        let no_list =
            || Failure::new("what it answers is no PodList: is this the URL of a kubelet's /pods?".to_owned());
        let document = list::read(&*body).map_err(|error| match error.is_data() {
            true => no_list().because(&error.to_string()),
            false => no_list(),
        })?;
        if document.kind != "PodList" {
            return Err(no_list());
        }
        let pods = document.facts.into_iter().filter_map(|fact| match fact {
            Object::Pod(pod) => Some(pod),
            _ => None,
        });
        Ok(pods.collect())
    }
}

fn client_config(kubelet: &Kubelet) -> Result<Config> {
    // The path is given with each request.
    let mut parts = kubelet.url.clone().into_parts();
    parts.path_and_query = Some(http::uri::PathAndQuery::from_static("/"));
    let mut config = Config::new(http::Uri::from_parts(parts).context("not a URL")?);
    config.connect_timeout = Some(PATIENCE);
    config.accept_invalid_certs = kubelet.insecure;
    // It is asked again anyway.
    config.default_retry = false;
    config.root_cert_file = match &kubelet.ca {
        Some(ca) => Some(readable(ca, "--kubelet-ca")?),
        None => [format!("{SERVICE_ACCOUNT}/ca.crt"), CLUSTER_CA.to_owned()]
            .into_iter()
            .map(PathBuf::from)
            .find(|path| path.exists()),
    };
    config.auth_info = auth(kubelet)?;
    ca_roots::only_where_needed(&mut config);
    Ok(config)
}

fn auth(kubelet: &Kubelet) -> Result<AuthInfo> {
    let mut auth = AuthInfo::default();
    let shown = |path: PathBuf| path.to_string_lossy().into_owned();
    if let Some((certificate, key)) = &kubelet.identity {
        auth.client_certificate = Some(shown(readable(certificate, "--kubelet-cert")?));
        auth.client_key = Some(shown(readable(key, "--kubelet-key")?));
    } else if let Some(token) = &kubelet.token {
        auth.token_file = Some(shown(readable(token, "--kubelet-token")?));
    } else if kubelet.is_verified() || kubelet.is_loopback() {
        let token = PathBuf::from(SERVICE_ACCOUNT).join("token");
        auth.token_file = token.exists().then(|| shown(token));
    }
    Ok(auth)
}

/// A path that the command line names must be there from the start.
fn readable(path: &Path, flag: &str) -> Result<PathBuf> {
    std::fs::File::open(path)
        .and_then(|file| match file.metadata()?.is_dir() {
            true => Err(io::ErrorKind::IsADirectory.into()),
            false => Ok(()),
        })
        .with_context(|| format!("cannot read {} ({flag})", path.display()))?;
    Ok(path.to_owned())
}

/// Why a kubelet that answers gives no list.
fn denied(status: StatusCode, body: &str) -> Failure {
    let body = body.trim();
    let user = body
        .split_once("user=")
        .map(|(_, rest)| rest.split([',', ')']).next().unwrap_or_default());
    match status {
        StatusCode::UNAUTHORIZED => Failure::new("401: it does not accept who asks".to_owned())
            .remedy("a token (--kubelet-token) or client certificate (--kubelet-cert, --kubelet-key) that it accepts and that has not expired"),
        StatusCode::FORBIDDEN => {
            let user = user.filter(|user| !user.is_empty()).unwrap_or("who asks");
            let failure = Failure::new(format!("403: {user} lacks the permission to get nodes/pods (in older clusters nodes/proxy)"));
            if user.starts_with("system:node:") {
                failure.remedy("a node may ask the API server: --kubeconfig=/etc/kubernetes/kubelet.conf --this-node")
            } else {
                failure.remedy("grant it with a ClusterRole that has verb get on resource nodes/pods or nodes/proxy")
            }
        }
        StatusCode::INTERNAL_SERVER_ERROR if body.starts_with("Authorization error") => Failure::new(
            "500: it cannot find out what may be asked: its API server does not answer".to_owned(),
        )
        .remedy("a client certificate is accepted all the same (--kubelet-cert, --kubelet-key)"),
        StatusCode::BAD_REQUEST if body.contains("HTTP request to an HTTPS server") => {
            Failure::new("400: it speaks https there, not http".to_owned()).remedy("--kubelet=https://…")
        }
        StatusCode::NOT_FOUND => Failure::new("404: there is nothing there; a kubelet's list is at /pods".to_owned()),
        _ => Failure::new(format!("{}: {}", status.as_u16(), one_line(body))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_say_what_is_missing() {
        let cases = [
            (401, "Unauthorized", "401: it does not accept", "--kubelet-token"),
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
            (403, "", "who asks lacks", "ClusterRole"),
            (
                500,
                "Authorization error (user=kmesh-viewer, verb=get, resource=nodes, subresource=proxy)",
                "its API server does not answer",
                "certificate",
            ),
            (
                400,
                "Client sent an HTTP request to an HTTPS server.\n",
                "https there",
                "https",
            ),
            (404, "404 page not found", "/pods", ""),
            (503, "a\u{1b}[31m\u{202e}\nb", "503: a[31m", ""),
            (
                403,
                "(user=\u{1b}[2J\nkmesh-trace: x)",
                r"403: \u001b[2J\u000akmesh-trace: x lacks",
                "",
            ),
        ];
        for (status, body, problem, remedy) in cases {
            let failure = denied(StatusCode::from_u16(status).unwrap(), body).to_string();
            assert!(
                failure.contains(problem) && failure.contains(remedy),
                "{status} {body}: {failure}"
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
        let error = format!("{:#}", client_config(&kubelet).unwrap_err());
        assert!(
            error.contains("--kubelet-token") && error.contains("/nonexistent/token"),
            "{error}"
        );
    }
}
