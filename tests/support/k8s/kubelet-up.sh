#!/bin/bash
# kubelet-up.sh DIR [APISERVER_DIR]: starts containerd, runc and a kubelet on this machine.
# Without APISERVER_DIR, the kubelet runs the static pods of DIR/manifests (static-pods.yaml of this
# folder, unless DIR/manifests has files). With the folder of apiserver-up.sh, it registers as node
# $NODE_NAME (default: the host name) and also runs the pods of that API server. The static pods
# appear there as mirror pods. STATIC=0 runs no static pods.
# Serves  https://127.0.0.1:${KUBELET_PORT:-10250}/pods        (auth as below)
#         http://127.0.0.1:${KUBELET_RO_PORT:-10255}/pods      (no auth; KUBELET_RO_PORT=0 turns it off)
# KUBELET_AUTH=cert   (default) no anonymous; client certificates of DIR/pki/ca.crt; any such client may do anything
#              anon   anonymous allowed, AlwaysAllow (kubelet's own built-in default)
#              webhook  as with kubeadm: certificate or bearer token, checked by the API server (needs APISERVER_DIR)
# KUBELET_TLS=self    (default) a self-signed certificate (SAN: node name only)
#             ca      a certificate signed by DIR/pki/ca.crt, with IP 127.0.0.1
# Writes DIR/pki/ca.crt, DIR/pki/client.{crt,key}, DIR/*.pid, DIR/*.log. DIR should be short (socket paths).
set -eu
. "$(dirname "$0")/lib.sh"
[ $# -ge 1 ] || die "usage: kubelet-up.sh DIR [APISERVER_DIR]"
mkdir -p "$1"/{pki,manifests,cni,kubelet,containerd}; D=$(cd "$1" && pwd); P=$D/pki
A=${2:+$(cd "$2" && pwd)}
NODE=${NODE_NAME:-$(hostname | tr A-Z a-z)}; PORT=${KUBELET_PORT:-10250}; RO=${KUBELET_RO_PORT-10255}
AUTH=${KUBELET_AUTH:-cert}; SUBNET=${POD_SUBNET:-10.244.77.0/24}; BR=${POD_BRIDGE:-kmk0}
need containerd containerd-shim-runc-v2 ctr runc kubelet openssl curl
! alive "$D/kubelet.pid" || die "already up in $D"
VER=$(kubelet --version | grep -oE 'v1\.[0-9]+' | head -1); MINOR=${VER#v1.}; [ -n "$MINOR" ] || MINOR=0
[ "$AUTH" != webhook ] || [ -n "$A" ] || die "KUBELET_AUTH=webhook needs APISERVER_DIR"

# the sysctls that the kubelet changes, which kubelet-down.sh restores
[ -s "$D/sysctl.before" ] || sysctl kernel.panic kernel.panic_on_oops vm.overcommit_memory vm.panic_on_oom \
  kernel.keys.root_maxkeys kernel.keys.root_maxbytes net.ipv4.ip_forward >"$D/sysctl.before"

if [ -n "$A" ]; then cp "$A/pki/ca.crt" "$A/pki/ca.key" "$P/"; else mk_ca "$P"; fi
mk_cert "$P" client "/O=system:masters/CN=kmesh-admin" clientAuth
mk_cert "$P" serving "/O=system:nodes/CN=system:node:$NODE" serverAuth "DNS:$NODE,DNS:localhost,IP:127.0.0.1"
TLS=""
[ "${KUBELET_TLS:-self}" != ca ] || TLS="tlsCertFile: $P/serving.crt
tlsPrivateKeyFile: $P/serving.key"

cat >"$D/containerd.toml" <<C
version = 2
root = "$D/containerd/root"
state = "$D/containerd/state"
[grpc]
  address = "$D/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "kmesh.local/pause:1"
  restrict_oom_score_adj = true   # without CAP_SYS_RESOURCE runc may not write -998
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      BinaryName = "$(command -v runc)"
      SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "$BIN/cni"
    conf_dir = "$D/cni"
C
cat >"$D/cni/10-kmesh.conflist" <<C
{"cniVersion":"0.4.0","name":"kmesh","plugins":[{"type":"bridge","bridge":"$BR","isGateway":true,"ipMasq":false,
 "ipam":{"type":"host-local","dataDir":"$D/cni/ipam","ranges":[[{"subnet":"$SUBNET"}]],"routes":[{"dst":"0.0.0.0/0"}]}}]}
C
if ! alive "$D/containerd.pid"; then   # containerd goes on if only the kubelet restarts
  start containerd "$D" "$(command -v containerd)" -c "$D/containerd.toml"
  wait_for 600 ctr -a "$D/containerd.sock" version || { tail -5 "$D/containerd.log" >&2; die "containerd did not come up"; }
  "$HERE/images.sh" "$D"
  ctr -a "$D/containerd.sock" -n k8s.io images import "$D/kmesh-images.tar" >/dev/null
fi

case $AUTH in
  cert)    AN=false WH=false MODE=AlwaysAllow;;
  anon)    AN=true  WH=false MODE=AlwaysAllow;;
  webhook) AN=false WH=true  MODE=Webhook;;
  *) die "KUBELET_AUTH=$AUTH?";;
esac
cat >"$D/kubelet.yaml" <<C
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: ${KUBELET_ADDRESS:-127.0.0.1}
port: $PORT
readOnlyPort: ${RO:-0}
healthzBindAddress: 127.0.0.1
healthzPort: ${KUBELET_HEALTHZ_PORT:-10248}
staticPodPath: $([ "${STATIC:-1}" = 0 ] && echo '""' || echo "$D/manifests")
fileCheckFrequency: 500ms
syncFrequency: 5s
nodeStatusUpdateFrequency: 1s
kubeAPIQPS: 100   # by default 5, with which the kubelet reports running pods only seconds after its start
kubeAPIBurst: 200
cgroupDriver: cgroupfs
failSwapOn: false
makeIPTablesUtilChains: false
resolvConf: ""
clusterDNS: [10.96.0.10]
clusterDomain: cluster.local
enforceNodeAllocatable: [pods]
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: 50Mi, nodefs.available: 1%, imagefs.available: 1%}
authentication:
  anonymous: {enabled: $AN}
  webhook: {enabled: $WH, cacheTTL: 1h}   # a test uses the cache after the API server has stopped
  x509: {clientCAFile: $P/ca.crt}
authorization: {mode: $MODE, webhook: {cacheAuthorizedTTL: 1h}}
$TLS
C
F=""
[ "$MINOR" -ge 27 ] && echo "containerRuntimeEndpoint: unix://$D/containerd.sock" >>"$D/kubelet.yaml" \
                    || F="--container-runtime=remote --container-runtime-endpoint=unix://$D/containerd.sock --network-plugin=cni"
[ "$MINOR" -ge 31 ] && echo "failCgroupV1: false" >>"$D/kubelet.yaml"
[ -z "$A" ] || {
  mk_cert "$P" node "/O=system:nodes/CN=system:node:$NODE" clientAuth
  S=$(awk '/server:/{gsub(/[",]/,"",$3); print $3; exit}' "$A/kubeconfig")
  mk_kubeconfig "$D/node.conf" "$S" "$P/ca.crt" "$P/node.crt" "$P/node.key"
  F="$F --kubeconfig=$D/node.conf"; }
if [ "${STATIC:-1}" != 0 ] && [ -z "$(ls "$D/manifests")" ]; then   # the kubelet reads one pod per file
  awk -v d="$D/manifests" '/^---/{n++; next} /^#/{next} {print > (d "/pod" n+0 ".yaml")}' "$HERE/static-pods.yaml"
fi
start kubelet "$D" "$(command -v kubelet)" --config="$D/kubelet.yaml" --root-dir="$D/kubelet" --cert-dir="$P/kubelet" \
  --hostname-override="$NODE" ${NODE_IP:+--node-ip=$NODE_IP} --v="${KUBELET_V:-2}" $F ${KUBELET_FLAGS:-}
U=https://127.0.0.1:$PORT
wait_for 600 curl -skf --cert "$P/client.crt" --key "$P/client.key" "$U/pods" || { grep -E '^[EF]' "$D/kubelet.log" | tail -8 >&2; die "kubelet did not come up (see $D/kubelet.log)"; }
echo "ready: $(kubelet --version) node $NODE: curl -k --cert $P/client.crt --key $P/client.key $U/pods"
