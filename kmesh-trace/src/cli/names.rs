//! The flags that say where names come from.

use std::path::PathBuf;

use clap::Args;
use http::Uri;

use crate::config;

/// Sources of names, as they are typed.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Names")]
pub struct Names {
    /// Ask the container runtime: this node's pods, with labels and addresses
    ///
    /// SOCKET is its CRI socket; without it, those of containerd and CRI-O are tried. It knows no owners and no Services.
    ///
    /// Without any of these flags, names come from what is on this node and needs no person's credentials: the container
    /// runtime, the kubelet (in a pod with its service account) and the kubelet's log folders. Traffic is traced at once,
    /// and names join as they arrive.
    #[arg(long, value_name = "SOCKET", require_equals = true)]
    pub cri: Option<Option<PathBuf>>,

    /// Ask the kubelet: this node's pods (default URL https://127.0.0.1:10250/pods)
    ///
    /// Also http://…:10255, the read-only port. The kubelet wants the permission to get nodes/pods, or nodes/proxy in older
    /// clusters.
    #[arg(long, value_name = "URL", require_equals = true, value_parser = config::kubelet_url)]
    pub kubelet: Option<Option<Uri>>,

    /// A file with the token for the kubelet; read anew as it rotates
    ///
    /// By default, in a pod, that of its service account. It is never sent to a kubelet on another machine whose certificate
    /// is not verified.
    #[arg(long, value_name = "FILE", requires = "kubelet", conflicts_with = "kubelet_cert")]
    pub kubelet_token: Option<PathBuf>,

    /// A file with the certificates that the kubelet's is verified with
    ///
    /// By default the cluster's: that of the pod's service account, /etc/kubernetes/pki/ca.crt, or the system's own.
    #[arg(long, value_name = "FILE", requires = "kubelet", conflicts_with = "kubelet_insecure")]
    pub kubelet_ca: Option<PathBuf>,

    /// A file with the client certificate for the kubelet
    #[arg(long, value_name = "FILE", requires_all = ["kubelet", "kubelet_key"])]
    pub kubelet_cert: Option<PathBuf>,

    /// A file with that certificate's key
    #[arg(long, value_name = "FILE", requires_all = ["kubelet", "kubelet_cert"])]
    pub kubelet_key: Option<PathBuf>,

    /// Do not verify the kubelet's certificate, which often is one that it made itself
    #[arg(long, requires = "kubelet")]
    pub kubelet_insecure: bool,

    /// Ask the API server: pods and Services of the whole cluster, kept up to date
    ///
    /// PATH is a kubeconfig; without it, $KUBECONFIG, ~/.kube/config, or else the account of the pod that this runs in. It
    /// wants the permission to list and watch pods, services, endpointslices (endpoints in older clusters), replicasets,
    /// jobs and nodes; what it may not, it does without.
    #[arg(long, value_name = "PATH", require_equals = true)]
    pub kubeconfig: Option<Option<PathBuf>>,

    /// The context of the kubeconfig to use, in place of its current one
    #[arg(long, value_name = "NAME", requires = "kubeconfig")]
    pub context: Option<String>,

    /// Of the API server, ask only for this node's pods, and Services
    ///
    /// A node's own credentials allow no more: --kubeconfig=/etc/kubernetes/kubelet.conf --this-node. The node's name is
    /// $NODE_NAME, or else the host's name in lower case.
    #[arg(long, requires = "kubeconfig")]
    pub this_node: bool,

    /// Read pods and Services from a file, as kubectl get -A -o json (or yaml) prints them
    #[arg(long, value_name = "FILE")]
    pub pods_file: Option<PathBuf>,

    /// No names: addresses only
    #[arg(long, conflicts_with_all = ["cri", "kubelet", "kubeconfig", "pods_file"])]
    pub no_resolve: bool,
}
