//! Flags of the subcommand `nodes`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::values;

/// The flags of `nodes`. The flags of the trace follow `--`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(mut_args = values::last_value_wins)]
pub struct Nodes {
    /// Trace this node (repeatable) [default: all]
    ///
    /// NAME is the name of a node as `kubectl get nodes` prints it.
    ///
    /// Example: kmesh-trace nodes --image kmesh-trace:0.1.0 --node worker-1,worker-2
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub node: Vec<String>,

    /// Trace the nodes with these labels
    ///
    /// LABELS is a label selector as for `kubectl get nodes -l`. With --node, only those of the named nodes are traced
    /// that have the labels.
    ///
    /// Example: kmesh-trace nodes --image kmesh-trace:0.1.0 -l role=web -- -n shop
    #[arg(short = 'l', long, value_name = "LABELS")]
    pub selector: Option<String>,

    /// Run this image in the pods
    ///
    /// The image contains the tool as /kmesh-trace (cargo xtask dist makes it), and comes from any registry that
    /// the nodes reach. With --copy-binary, any image with a shell and `head` works. No image is published yet, so
    /// there is no default.
    ///
    /// Example: kmesh-trace nodes --image registry.example/kmesh-trace:0.1.0
    #[arg(long, value_name = "IMAGE", required_unless_present = "clean")]
    pub image: Option<String>,

    /// Pull the image: Always, IfNotPresent or Never
    ///
    /// The default is the cluster's own: Always for the tag latest, else IfNotPresent.
    ///
    /// Example: kmesh-trace nodes --image kmesh-trace:0.1.0 --image-pull-policy Never
    #[arg(long, value_name = "POLICY", hide_possible_values = true)]
    pub image_pull_policy: Option<PullPolicy>,

    /// Create the pods in this namespace
    ///
    /// The default is the namespace of the kubeconfig's context. The namespace must admit privileged pods:
    /// deploy/kubernetes/rbac.yaml creates one that does.
    ///
    /// Example: kmesh-trace nodes --image kmesh-trace:0.1.0 --pod-namespace kmesh-trace
    #[arg(long, value_name = "NAMESPACE")]
    pub pod_namespace: Option<String>,

    /// Copy this program into the pods
    ///
    /// The program goes through the API server into the memory of each pod. Its system and architecture must be the
    /// node's, and the C library of the image must fit unless the program is static.
    ///
    /// Example: kmesh-trace nodes --copy-binary --image busybox
    #[arg(long)]
    pub copy_binary: bool,

    /// Do not ask before more than 20 nodes are traced
    ///
    /// Without a terminal nobody can answer, so more than 20 nodes require this flag.
    ///
    /// Example: kmesh-trace nodes --image kmesh-trace:0.1.0 --yes
    #[arg(short, long)]
    pub yes: bool,

    /// Use this kubeconfig
    ///
    /// The default is the same as kubectl's: $KUBECONFIG, then ~/.kube/config.
    ///
    /// Example: kmesh-trace nodes --kubeconfig admin.conf --image kmesh-trace:0.1.0
    #[arg(long, value_name = "PATH")]
    pub kubeconfig: Option<PathBuf>,

    /// Use this context of the kubeconfig
    ///
    /// The default is the current context.
    ///
    /// Example: kmesh-trace nodes --context east --image kmesh-trace:0.1.0
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,

    /// Delete the finished pods of earlier runs
    ///
    /// A run deletes its pods when it ends. Only a run that was killed leaves them, and each ends by itself. Pods that
    /// still run stay: they may belong to the run of somebody else.
    ///
    /// Example: kmesh-trace nodes --clean
    #[arg(long, conflicts_with_all = ["node", "selector", "image", "image_pull_policy", "copy_binary", "yes", "flags"])]
    pub clean: bool,

    /// The flags of the trace, after --
    ///
    /// Outputs, captures, metrics and filters by names act here. Filters by address, port, family and direction act on
    /// the nodes. Names come from the API server.
    ///
    /// Example: kmesh-trace nodes --image kmesh-trace:0.1.0 -- --failed -o table
    #[arg(last = true, value_name = "FLAGS")]
    pub flags: Vec<OsString>,
}

/// When a node pulls the image, as Kubernetes spells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PullPolicy {
    #[value(name = "Always")]
    Always,
    #[value(name = "IfNotPresent")]
    IfNotPresent,
    #[value(name = "Never")]
    Never,
}

impl PullPolicy {
    /// Returns the value of `imagePullPolicy`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}
