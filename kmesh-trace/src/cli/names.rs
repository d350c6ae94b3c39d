//! Flags that choose the sources of names.

use std::path::PathBuf;

use clap::Args;
use http::Uri;
use http::uri::{PathAndQuery, Scheme};

/// The path of a kubelet's pod list.
const PODS_PATH: &str = "/pods";

/// Flags that choose the sources of names.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Names")]
pub struct Names {
    /// Ask the container runtime for this node's pods
    ///
    /// SOCKET is the runtime's CRI socket. The default is the usual socket of containerd or CRI-O. The runtime knows
    /// labels and addresses of pods, but no owners and no services.
    ///
    /// Without any of these flags, names come from sources on this node that need no personal credentials: the
    /// container runtime, the kubelet (in a pod, with the pod's service account) and the kubelet's pod log folders.
    /// Tracing starts at once, and names are added as they arrive.
    ///
    /// Example: kmesh-trace --cri /run/crio/crio.sock
    #[arg(long, value_name = "SOCKET")]
    pub cri: Option<Option<PathBuf>>,

    /// Ask the kubelet for this node's pods
    ///
    /// The default URL is https://127.0.0.1:10250/pods. Read-only ports (http://…:10255) work, too. The kubelet
    /// requires the permission to get nodes/pods, or nodes/proxy in older clusters.
    ///
    /// Example: kmesh-trace --kubelet https://10.0.0.5:10250/pods --kubelet-cert client.crt --kubelet-key client.key
    #[arg(long, value_name = "URL", value_parser = kubelet_url)]
    pub kubelet: Option<Option<Uri>>,

    /// Send the token in FILE to the kubelet
    ///
    /// The file is read again when the token rotates. In a pod, the default is the token of the service account. A
    /// token is never sent to a kubelet on another machine whose certificate is not verified.
    ///
    /// Example: kmesh-trace --kubelet --kubelet-token /run/token
    #[arg(long, value_name = "FILE", requires = "kubelet", conflicts_with = "kubelet_cert")]
    pub kubelet_token: Option<PathBuf>,

    /// Verify the kubelet with the CAs in FILE
    ///
    /// The default is the cluster's CA, from the pod's service account or /etc/kubernetes/pki/ca.crt, and then the CAs
    /// of this system.
    ///
    /// Example: kmesh-trace --kubelet --kubelet-ca /etc/kubernetes/pki/ca.crt
    #[arg(long, value_name = "FILE", requires = "kubelet", conflicts_with = "kubelet_insecure")]
    pub kubelet_ca: Option<PathBuf>,

    /// Send the client certificate in FILE to the kubelet
    ///
    /// Example: kmesh-trace --kubelet --kubelet-cert client.crt --kubelet-key client.key
    #[arg(long, value_name = "FILE", requires_all = ["kubelet", "kubelet_key"])]
    pub kubelet_cert: Option<PathBuf>,

    /// Use the private key in FILE with --kubelet-cert
    ///
    /// Example: kmesh-trace --kubelet --kubelet-cert client.crt --kubelet-key client.key
    #[arg(long, value_name = "FILE", requires_all = ["kubelet", "kubelet_cert"])]
    pub kubelet_key: Option<PathBuf>,

    /// Do not verify the kubelet's certificate
    ///
    /// Many kubelets have a self-signed certificate, which no CA verifies. A token then goes to 127.0.0.1 only.
    ///
    /// Example: kmesh-trace --kubelet --kubelet-insecure --kubelet-token /run/token
    #[arg(long, requires = "kubelet")]
    pub kubelet_insecure: bool,

    /// Watch the API server for the whole cluster's names
    ///
    /// PATH is a kubeconfig. The default is $KUBECONFIG, then ~/.kube/config, then the service account of the pod that
    /// runs this program. Required permissions: list and watch pods, services, endpointslices (endpoints in older
    /// clusters), replicasets, jobs and nodes. Names whose permission is missing are left out.
    ///
    /// Example: kmesh-trace --kubeconfig admin.conf
    #[arg(long, value_name = "PATH")]
    pub kubeconfig: Option<Option<PathBuf>>,

    /// Use this context [default: the current context]
    ///
    /// The context is one of the kubeconfig's.
    ///
    /// Example: kmesh-trace --kubeconfig --context east
    #[arg(long, value_name = "NAME", requires = "kubeconfig")]
    pub context: Option<String>,

    /// Watch only this node's pods on the API server
    ///
    /// Services are still those of the whole cluster. The credentials of a node allow only this. The node's name is
    /// $NODE_NAME, or else the host name in lower case.
    ///
    /// Example: kmesh-trace --kubeconfig /etc/kubernetes/kubelet.conf --this-node
    #[arg(long, requires = "kubeconfig")]
    pub this_node: bool,

    /// Read pods and services from a JSON or YAML file
    ///
    /// The file has the format of kubectl get -o json or -o yaml.
    ///
    /// Example: kubectl get pods,services,nodes -A -o json > names.json; kmesh-trace --pods-file names.json
    #[arg(long, value_name = "FILE")]
    pub pods_file: Option<PathBuf>,

    /// Print addresses only, without names
    ///
    /// No source is asked, so filters by names cannot be used.
    #[arg(long, conflicts_with_all = ["cri", "kubelet", "kubeconfig", "pods_file"])]
    pub no_resolve: bool,
}

/// Parses the URL of a kubelet. The default scheme is https, the default port 10250 (10255 for http), and the default
/// path `/pods`.
fn kubelet_url(text: &str) -> Result<Uri, String> {
    const EXPECTED: &str = "write https://HOST:10250/pods, or http://HOST:10255/pods for the read-only port";
    let with_scheme = if text.contains("://") {
        text.to_owned()
    } else {
        format!("https://{text}")
    };
    let mut parts = with_scheme
        .parse::<Uri>()
        .map_err(|_| EXPECTED.to_owned())?
        .into_parts();
    let port = match parts.scheme.as_ref().map(Scheme::as_str) {
        Some("https") => 10250,
        Some("http") => 10255,
        _ => return Err(EXPECTED.to_owned()),
    };
    let authority = parts
        .authority
        .filter(|authority| !authority.host().is_empty() && !authority.as_str().contains('@'));
    let authority = authority.ok_or(EXPECTED)?;
    parts.authority = Some(match authority.port() {
        Some(_) => authority,
        None => format!("{authority}:{port}").parse().map_err(|_| EXPECTED.to_owned())?,
    });
    if parts.path_and_query.as_ref().is_none_or(|path| path == "/") {
        parts.path_and_query = Some(PathAndQuery::from_static(PODS_PATH));
    }
    Uri::from_parts(parts).map_err(|_| EXPECTED.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubelet_url_is_completed_or_refused() {
        let cases = [
            ("https://127.0.0.1:10250/pods", Some("https://127.0.0.1:10250/pods")),
            ("https://127.0.0.1", Some("https://127.0.0.1:10250/pods")),
            ("127.0.0.1:10250", Some("https://127.0.0.1:10250/pods")),
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
}
