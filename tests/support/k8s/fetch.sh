#!/bin/bash
# fetch.sh DIR: downloads the programs that the scripts of this folder run. Use them with K8S_BIN=DIR.
# Kubernetes' release binaries come from dl.k8s.io. etcd, containerd, runc, the CNI plugins and busybox come from Debian 12,
# unpacked and not installed. Needs curl, 1 GB of disk, and Debian's package lists (apt-get update).
set -eu
VERSION=v1.34.7
# The checksum of kubernetes-server-linux-amd64.tar.gz in the changelog of Kubernetes.
SHA512=baaf8dd4ff110a384e9dfe3db54a85a04223074fd13da32a38f9883a12b93bcd26ae4d666bbc2f37724f0a6631f3d2e4ddb97caaf909906711a824afd70cec81
PROGRAMS="kubelet kube-apiserver kube-controller-manager kube-scheduler kubectl"
PACKAGES="etcd-server containerd runc containernetworking-plugins busybox-static"

[ $# = 1 ] || { echo "usage: fetch.sh DIR" >&2; exit 1; }
mkdir -p "$1"; DIR=$(cd "$1" && pwd); T=$(mktemp -d); trap 'rm -rf "$T"' EXIT

curl -fsSL -o "$T/server.tar.gz" "https://dl.k8s.io/$VERSION/kubernetes-server-linux-amd64.tar.gz"
echo "$SHA512  $T/server.tar.gz" | sha512sum --check --quiet
for p in $PROGRAMS; do echo "kubernetes/server/bin/$p"; done |
  tar -xzf "$T/server.tar.gz" -C "$DIR" --strip-components=3 --files-from=-

# apt's sandbox user cannot write to this folder.
(cd "$T" && apt-get -q -o APT::Sandbox::User=root download $PACKAGES)
for d in "$T"/*.deb; do dpkg-deb -x "$d" "$T/root"; done
cp "$T"/root/usr/bin/{etcd,containerd,containerd-shim-runc-v2,ctr} "$T/root/usr/sbin/runc" "$T/root/bin/busybox" "$DIR/"
mkdir -p "$DIR/cni"; cp "$T"/root/usr/lib/cni/* "$DIR/cni/"
"$DIR/kubelet" --version
"$DIR/containerd" --version
