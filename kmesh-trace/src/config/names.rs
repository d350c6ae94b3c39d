//! Where names come from.

use std::net::IpAddr;
use std::path::PathBuf;

use http::Uri;
use http::uri::{PathAndQuery, Scheme};

use crate::cli::Names as Flags;

use super::Refusal;

/// What a kubelet is asked for.
const PODS: &str = "/pods";
/// The kubelet of this machine.
const KUBELET: &str = "https://127.0.0.1:10250/pods";
/// Where containerd and CRI-O listen, k3s's containerd among them.
const SOCKETS: [&str; 3] = [
    "/run/containerd/containerd.sock",
    "/run/crio/crio.sock",
    "/run/k3s/containerd/containerd.sock",
];

/// A source of names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// It was asked for by name: that it does not answer is an error.
    pub named: bool,
    /// Which.
    pub origin: Origin,
}

/// What can be a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The first container runtime that listens on one of these sockets.
    Cri(Vec<PathBuf>),
    /// A kubelet.
    Kubelet(Kubelet),
    /// The kubelet's log folders.
    PodLogs,
    /// An API server.
    ApiServer(ApiServer),
    /// A file.
    File(PathBuf),
}

impl Origin {
    /// What it is, in a word or two.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Cri(_) => "CRI",
            Self::Kubelet(_) => "kubelet",
            Self::PodLogs => "pod logs",
            Self::ApiServer(_) => "API server",
            Self::File(_) => "file",
        }
    }
}

/// A kubelet, and how to ask it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kubelet {
    /// Its list of pods.
    pub url: Uri,
    /// A file with a token; none: the pod's own account, where this runs in a pod.
    pub token: Option<PathBuf>,
    /// A file with certificates; none: those of the cluster, where they are found.
    pub ca: Option<PathBuf>,
    /// Files with a client certificate and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// Its certificate is not verified.
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

    /// Whether it is on this machine, so that nobody is between.
    pub fn is_loopback(&self) -> bool {
        let host = self.url.host().unwrap_or_default();
        let ip = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        ip.map_or(host == "localhost", |ip| ip.to_canonical().is_loopback())
    }

    /// Whether this kubelet may get the token of the pod that this runs in, without a flag that says so.
    pub fn may_have_own_token(&self) -> bool {
        let is_https = self.url.scheme() == Some(&Scheme::HTTPS);
        self.is_verified() || (is_https && self.is_loopback())
    }

    /// Whether the kubelet proves who it is.
    pub fn is_verified(&self) -> bool {
        self.url.scheme() == Some(&Scheme::HTTPS) && !self.insecure
    }
}

/// How to find an API server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiServer {
    /// A kubeconfig; none: as kubectl finds it, else the pod's own account.
    pub kubeconfig: Option<PathBuf>,
    /// Not its current context but this one.
    pub context: Option<String>,
    /// Only pods of this node.
    pub this_node: bool,
}

/// What the flags ask for. By default what is on this node; nothing when no names are wanted.
pub(super) fn sources(flags: &Flags) -> Result<Vec<Source>, Refusal> {
    let named = named(flags)?;
    if flags.no_resolve || !named.is_empty() {
        return Ok(named.into_iter().map(|origin| Source { named: true, origin }).collect());
    }
    let places = [
        Origin::Cri(sockets()),
        Origin::Kubelet(Kubelet::at(Uri::from_static(KUBELET))),
        Origin::PodLogs,
    ];
    Ok(places.map(|origin| Source { named: false, origin }).into())
}

fn named(flags: &Flags) -> Result<Vec<Origin>, Refusal> {
    let cri = flags.cri.as_ref().map(|socket| match socket {
        // As the kubelet's own flag has it.
        Some(socket) => {
            let path = socket.to_str().and_then(|text| text.strip_prefix("unix://"));
            Origin::Cri(vec![path.map_or_else(|| socket.clone(), PathBuf::from)])
        }
        None => Origin::Cri(sockets()),
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

fn sockets() -> Vec<PathBuf> {
    SOCKETS.map(PathBuf::from).into()
}

fn kubelet(url: Option<&Uri>, flags: &Flags) -> Result<Kubelet, Refusal> {
    let kubelet = Kubelet {
        token: flags.kubelet_token.clone(),
        ca: flags.kubelet_ca.clone(),
        identity: flags.kubelet_cert.clone().zip(flags.kubelet_key.clone()),
        insecure: flags.kubelet_insecure,
        ..Kubelet::at(url.cloned().unwrap_or_else(|| Uri::from_static(KUBELET)))
    };
    let plain = kubelet.url.scheme() == Some(&Scheme::HTTP);
    let of_tls = [
        (flags.kubelet_ca.is_some(), "--kubelet-ca"),
        (flags.kubelet_cert.is_some(), "--kubelet-cert"),
        (flags.kubelet_insecure, "--kubelet-insecure"),
    ];
    if let Some((_, flag)) = of_tls.iter().find(|(given, _)| plain && *given) {
        return Err(Refusal(format!(
            "{flag} has no meaning with --kubelet={}: http has no certificates",
            kubelet.url
        )));
    }
    if kubelet.token.is_some() && !kubelet.is_verified() && !kubelet.is_loopback() {
        let unverified = if plain {
            "--kubelet=http://…"
        } else {
            "--kubelet-insecure"
        };
        return Err(Refusal(format!(
            "--kubelet-token cannot be used with {unverified}: on another machine, a token is sent only to a kubelet whose certificate is verified"
        )));
    }
    Ok(kubelet)
}

/// A kubelet's URL: http or https, and a host; by default its port is 10250, or 10255 for http, and its path `/pods`.
pub(crate) fn kubelet_url(text: &str) -> Result<Uri, String> {
    const HOW: &str = "write https://HOST:10250/pods, or http://HOST:10255/pods for the read-only port";
    let with_scheme = if text.contains("://") {
        text.to_owned()
    } else {
        format!("https://{text}")
    };
    let mut parts = with_scheme.parse::<Uri>().map_err(|_| HOW.to_owned())?.into_parts();
    let port = match parts.scheme.as_ref().map(Scheme::as_str) {
        Some("https") => 10250,
        Some("http") => 10255,
        _ => return Err(HOW.to_owned()),
    };
    let authority = parts
        .authority
        .filter(|authority| !authority.host().is_empty() && !authority.as_str().contains('@'));
    let authority = authority.ok_or(HOW)?;
    parts.authority = Some(match authority.port() {
        Some(_) => authority,
        None => format!("{authority}:{port}").parse().map_err(|_| HOW.to_owned())?,
    });
    if parts.path_and_query.as_ref().is_none_or(|path| path == "/") {
        parts.path_and_query = Some(PathAndQuery::from_static(PODS));
    }
    Uri::from_parts(parts).map_err(|_| HOW.to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::tests::parsed;
    use super::*;

    fn asked(arguments: &str) -> Result<Vec<Source>, String> {
        sources(&parsed(arguments).names).map_err(|refusal| refusal.to_string())
    }

    fn one(arguments: &str) -> Origin {
        let mut sources = asked(arguments).unwrap();
        assert!(sources.len() == 1 && sources[0].named, "{arguments}: {sources:?}");
        sources.remove(0).origin
    }

    #[test]
    fn without_flags_what_is_on_this_node() {
        let sources = asked("").unwrap();
        assert!(sources.iter().all(|source| !source.named));
        let has_api_server = sources
            .iter()
            .any(|source| matches!(source.origin, Origin::ApiServer(_) | Origin::File(_)));
        assert_eq!((sources.len(), has_api_server), (3, false));
        assert_eq!(asked("--no-resolve"), Ok(vec![]));
    }

    #[test]
    fn what_is_named_is_all_that_is_asked() {
        assert_eq!(one("--cri"), Origin::Cri(sockets()));
        assert_eq!(one("--cri=/x.sock"), Origin::Cri(vec!["/x.sock".into()]));
        assert_eq!(one("--cri=unix:///x.sock"), Origin::Cri(vec!["/x.sock".into()]));
        assert_eq!(one("--pods-file p.json"), Origin::File("p.json".into()));
        let api_server = |kubeconfig: Option<&str>, context: Option<&str>, this_node| {
            Origin::ApiServer(ApiServer {
                kubeconfig: kubeconfig.map(PathBuf::from),
                context: context.map(str::to_owned),
                this_node,
            })
        };
        assert_eq!(one("--kubeconfig"), api_server(None, None, false));
        assert_eq!(
            one("--kubeconfig=k --context c --this-node"),
            api_server(Some("k"), Some("c"), true)
        );
        assert_eq!(asked("--cri --kubelet --kubeconfig --pods-file p").unwrap().len(), 4);
    }

    #[test]
    fn a_kubelet_is_asked_as_the_flags_say() {
        let default = Kubelet::at(Uri::from_static(KUBELET));
        assert_eq!(one("--kubelet"), Origin::Kubelet(default.clone()));
        assert_eq!(
            one("--kubelet --kubelet-token t --kubelet-ca c"),
            Origin::Kubelet(Kubelet {
                token: Some("t".into()),
                ca: Some("c".into()),
                ..default.clone()
            })
        );
        assert_eq!(
            one("--kubelet=10.0.0.5 --kubelet-cert c --kubelet-key k --kubelet-insecure"),
            Origin::Kubelet(Kubelet {
                identity: Some(("c".into(), "k".into())),
                insecure: true,
                ..Kubelet::at(Uri::from_static("https://10.0.0.5:10250/pods"))
            })
        );
    }

    #[test]
    fn urls_are_completed_or_refused() {
        let cases = [
            ("https://127.0.0.1:10250/pods", Some(KUBELET)),
            ("https://127.0.0.1", Some(KUBELET)),
            ("127.0.0.1:10250", Some(KUBELET)),
            ("http://n1", Some("http://n1:10255/pods")),
            ("http://n1:80/", Some("http://n1:80/pods")),
            (
                "https://[fd00::1]/runningpods/",
                Some("https://[fd00::1]:10250/runningpods/"),
            ),
            ("ftp://n1", None),
            ("https://", None),
            ("https://user:secret@n1", None),
            ("not a url", None),
            ("", None),
        ];
        for (text, expected) in cases {
            let url = kubelet_url(text).ok().map(|url| url.to_string());
            assert_eq!(url.as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn own_token_goes_to_a_verified_kubelet_or_over_tls_to_this_machine() {
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
    fn tokens_are_kept_from_whom_they_might_not_be_for() {
        for arguments in [
            "--kubelet --kubelet-token t --kubelet-insecure",
            "--kubelet=https://[::1] --kubelet-token t --kubelet-insecure",
            "--kubelet=http://localhost --kubelet-token t",
            "--kubelet=n1 --kubelet-token t",
            "--kubelet=http://n1",
        ] {
            assert!(asked(arguments).is_ok(), "{arguments}");
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
            let refused = asked(arguments).unwrap_err();
            assert!(
                parts.iter().all(|part| refused.contains(part)),
                "{arguments}: {refused}"
            );
        }
    }
}
