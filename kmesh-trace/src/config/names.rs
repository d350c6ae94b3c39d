//! The sources of names that a run asks.

use std::net::IpAddr;
use std::path::PathBuf;

use http::Uri;
use http::uri::Scheme;

use super::error::ConfigError;
use crate::cli::Names;

/// The URL of this node's kubelet.
const LOCAL_KUBELET: &str = "https://127.0.0.1:10250/pods";
/// The usual sockets of containerd, CRI-O and k3s's containerd.
const CRI_SOCKETS: [&str; 3] = [
    "/run/containerd/containerd.sock",
    "/run/crio/crio.sock",
    "/run/k3s/containerd/containerd.sock",
];

/// A source of names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceConfig {
    /// Whether a flag named the source. A named source that does not answer is an error.
    pub named: bool,
    /// The kind of source, and where it is.
    pub origin: Origin,
}

/// The kind of a source of names, and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The first container runtime that listens on one of these sockets.
    Cri(Vec<PathBuf>),
    /// The pod list of a kubelet.
    Kubelet(Kubelet),
    /// The names of the kubelet's pod log folders.
    PodLogs,
    /// A watch on an API server.
    ApiServer(ApiServer),
    /// A file of objects, as kubectl prints them.
    File(PathBuf),
}

impl Origin {
    /// Returns the name of the kind of source for messages.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Cri(_) => "CRI",
            Self::Kubelet(_) => "kubelet",
            Self::PodLogs => "pod logs",
            Self::ApiServer(_) => "API server",
            Self::File(_) => "file",
        }
    }
}

/// The address of a kubelet, and the credentials for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kubelet {
    /// The URL of the pod list.
    pub url: Uri,
    /// A file with a token. The default is the token of the pod's service account, if this program runs in a pod.
    pub token: Option<PathBuf>,
    /// A file with CA certificates. The default is the cluster's CA, if it is found.
    pub ca: Option<PathBuf>,
    /// The files of a client certificate and its private key.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// Whether the kubelet's certificate is not verified.
    pub insecure: bool,
}

impl Kubelet {
    fn at(url: Uri) -> Self {
        Self {
            url,
            token: None,
            ca: None,
            identity: None,
            insecure: false,
        }
    }

    /// Returns whether the kubelet is on this machine, so that no other machine can intercept the connection.
    pub fn is_loopback(&self) -> bool {
        let host = self.url.host().unwrap_or_default();
        let ip = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        ip.map_or(host == "localhost", |ip| ip.to_canonical().is_loopback())
    }

    /// Returns whether the token of the pod's service account may be sent to this kubelet without `--kubelet-token`.
    pub fn may_have_own_token(&self) -> bool {
        let is_https = self.url.scheme() == Some(&Scheme::HTTPS);
        self.is_verified() || (is_https && self.is_loopback())
    }

    /// Returns whether the kubelet's certificate is verified.
    pub fn is_verified(&self) -> bool {
        self.url.scheme() == Some(&Scheme::HTTPS) && !self.insecure
    }
}

/// The credentials of an API server, and what is watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiServer {
    /// The path of a kubeconfig. The default is the kubeconfig that kubectl would use, or else the pod's service
    /// account.
    pub kubeconfig: Option<PathBuf>,
    /// The context to use instead of the current one.
    pub context: Option<String>,
    /// Whether only the pods of this node are watched.
    pub this_node: bool,
}

/// Returns the name sources that the flags select, or the local ones of this node if no flag does. Returns none with
/// `--no-resolve`.
pub(super) fn sources(flags: &Names) -> Result<Vec<SourceConfig>, ConfigError> {
    let named = named_sources(flags)?;
    if flags.no_resolve || !named.is_empty() {
        return Ok(named
            .into_iter()
            .map(|origin| SourceConfig { named: true, origin })
            .collect());
    }
    let local = [
        Origin::Cri(cri_sockets()),
        Origin::Kubelet(Kubelet::at(Uri::from_static(LOCAL_KUBELET))),
        Origin::PodLogs,
    ];
    Ok(local.map(|origin| SourceConfig { named: false, origin }).into())
}

fn named_sources(flags: &Names) -> Result<Vec<Origin>, ConfigError> {
    let cri = flags.cri.as_ref().map(|socket| match socket {
        // The kubelet's flag --container-runtime-endpoint has the form unix:///path.
        Some(socket) => {
            let path = socket.to_str().and_then(|text| text.strip_prefix("unix://"));
            Origin::Cri(vec![path.map_or_else(|| socket.clone(), PathBuf::from)])
        }
        None => Origin::Cri(cri_sockets()),
    });
    let kubelet = flags
        .kubelet
        .as_ref()
        .map(|url| kubelet(url.as_ref(), flags))
        .transpose()?;
    let api_server = flags.kubeconfig.as_ref().map(|kubeconfig| {
        Origin::ApiServer(ApiServer {
            kubeconfig: kubeconfig.clone(),
            context: flags.context.clone(),
            this_node: flags.this_node,
        })
    });
    let file = flags.pods_file.clone().map(Origin::File);
    Ok([cri, kubelet.map(Origin::Kubelet), api_server, file]
        .into_iter()
        .flatten()
        .collect())
}

fn cri_sockets() -> Vec<PathBuf> {
    CRI_SOCKETS.map(PathBuf::from).into()
}

fn kubelet(url: Option<&Uri>, flags: &Names) -> Result<Kubelet, ConfigError> {
    let kubelet = Kubelet {
        token: flags.kubelet_token.clone(),
        ca: flags.kubelet_ca.clone(),
        identity: flags.kubelet_cert.clone().zip(flags.kubelet_key.clone()),
        insecure: flags.kubelet_insecure,
        ..Kubelet::at(url.cloned().unwrap_or_else(|| Uri::from_static(LOCAL_KUBELET)))
    };
    let is_plain = kubelet.url.scheme() == Some(&Scheme::HTTP);
    let requires_tls = [
        (flags.kubelet_ca.is_some(), "--kubelet-ca"),
        (flags.kubelet_cert.is_some(), "--kubelet-cert"),
        (flags.kubelet_insecure, "--kubelet-insecure"),
    ];
    if let Some((_, flag)) = requires_tls.iter().find(|(is_given, _)| is_plain && *is_given) {
        return Err(ConfigError::new(format!(
            "{flag} cannot be used with --kubelet={}: http has no certificates",
            kubelet.url
        )));
    }
    if kubelet.token.is_some() && !kubelet.is_verified() && !kubelet.is_loopback() {
        let unverified = if is_plain {
            "--kubelet=http://…"
        } else {
            "--kubelet-insecure"
        };
        return Err(ConfigError::new(format!(
            "--kubelet-token cannot be used with {unverified}: a token is sent to another machine only if the \
             kubelet's certificate is verified"
        )));
    }
    Ok(kubelet)
}

#[cfg(test)]
mod tests {
    use super::super::tests::parsed;
    use super::*;

    fn parse(arguments: &str) -> Result<Vec<SourceConfig>, String> {
        sources(&parsed(arguments).names).map_err(|error| error.to_string())
    }

    fn parse_single(arguments: &str) -> Origin {
        let mut sources = parse(arguments).unwrap();
        assert!(sources.len() == 1 && sources[0].named, "{arguments}: {sources:?}");
        sources.remove(0).origin
    }

    #[test]
    fn default_sources_are_those_of_this_node() {
        let sources = parse("").unwrap();
        assert!(sources.iter().all(|source| !source.named));
        let has_api_server = sources
            .iter()
            .any(|source| matches!(source.origin, Origin::ApiServer(_) | Origin::File(_)));
        assert_eq!((sources.len(), has_api_server), (3, false));
        assert_eq!(parse("--no-resolve"), Ok(vec![]));
    }

    #[test]
    fn named_sources_replace_the_default_ones() {
        assert_eq!(parse_single("--cri"), Origin::Cri(cri_sockets()));
        assert_eq!(parse_single("--cri=/x.sock"), Origin::Cri(vec!["/x.sock".into()]));
        assert_eq!(
            parse_single("--cri=unix:///x.sock"),
            Origin::Cri(vec!["/x.sock".into()])
        );
        assert_eq!(parse_single("--pods-file p.json"), Origin::File("p.json".into()));
        let api_server = |kubeconfig: Option<&str>, context: Option<&str>, this_node| {
            Origin::ApiServer(ApiServer {
                kubeconfig: kubeconfig.map(PathBuf::from),
                context: context.map(str::to_owned),
                this_node,
            })
        };
        assert_eq!(parse_single("--kubeconfig"), api_server(None, None, false));
        assert_eq!(
            parse_single("--kubeconfig=k --context c --this-node"),
            api_server(Some("k"), Some("c"), true)
        );
        assert_eq!(parse("--cri --kubelet --kubeconfig --pods-file p").unwrap().len(), 4);
    }

    #[test]
    fn kubelet_flags_set_its_credentials() {
        let default = Kubelet::at(Uri::from_static(LOCAL_KUBELET));
        assert_eq!(parse_single("--kubelet"), Origin::Kubelet(default.clone()));
        assert_eq!(
            parse_single("--kubelet --kubelet-token t --kubelet-ca c"),
            Origin::Kubelet(Kubelet {
                token: Some("t".into()),
                ca: Some("c".into()),
                ..default.clone()
            })
        );
        assert_eq!(
            parse_single("--kubelet=10.0.0.5 --kubelet-cert c --kubelet-key k --kubelet-insecure"),
            Origin::Kubelet(Kubelet {
                identity: Some(("c".into(), "k".into())),
                insecure: true,
                ..Kubelet::at(Uri::from_static("https://10.0.0.5:10250/pods"))
            })
        );
    }

    #[test]
    fn own_token_requires_verified_kubelet_or_tls_to_this_machine() {
        for (url, insecure, expected) in [
            ("https://n1:10250/pods", false, true),
            ("https://n1:10250/pods", true, false),
            ("https://127.0.0.1:10250/pods", true, true),
            ("https://[::1]:10250/pods", true, true),
            ("http://127.0.0.1:10255/pods", false, false),
            ("http://localhost:10255/pods", false, false),
            ("http://n1:10255/pods", false, false),
        ] {
            let kubelet = Kubelet {
                insecure,
                ..Kubelet::at(Uri::from_static(url))
            };
            assert_eq!(kubelet.may_have_own_token(), expected, "{url} {insecure}");
        }
    }

    #[test]
    fn token_is_refused_for_unverified_kubelet_elsewhere() {
        for arguments in [
            "--kubelet --kubelet-token t --kubelet-insecure",
            "--kubelet=https://[::1] --kubelet-token t --kubelet-insecure",
            "--kubelet=http://localhost --kubelet-token t",
            "--kubelet=n1 --kubelet-token t",
            "--kubelet=http://n1",
        ] {
            assert!(parse(arguments).is_ok(), "{arguments}");
        }
        for (arguments, parts) in [
            (
                "--kubelet=n1 --kubelet-token t --kubelet-insecure",
                ["--kubelet-token", "--kubelet-insecure"],
            ),
            ("--kubelet=http://n1 --kubelet-token t", ["--kubelet-token", "http://"]),
            ("--kubelet=http://n1 --kubelet-ca c", ["--kubelet-ca", "http://n1"]),
            (
                "--kubelet=http://n1 --kubelet-insecure",
                ["--kubelet-insecure", "http://n1"],
            ),
        ] {
            let refused = parse(arguments).unwrap_err();
            assert!(
                parts.iter().all(|part| refused.contains(part)),
                "{arguments}: {refused}"
            );
        }
    }
}
