# Shared functions, sourced by the scripts of this folder. `K8S_BIN` is the folder with kubelet, kube-apiserver, kubectl,
# kube-controller-manager, kube-scheduler, etcd, containerd, runc, ctr, cni/ and busybox.
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
K8S_ROOT=${K8S_ROOT:-/tmp/k8s-root}
BIN=${K8S_BIN:-$K8S_ROOT/bin}           # before the other binaries
export PATH=$BIN:$PATH

die() { echo "$(basename "$0"): $*" >&2; exit 1; }
need() { local b; for b; do command -v "$b" >/dev/null || die "no $b in $BIN (K8S_BIN)"; done; }

# start NAME DIR COMMAND...: runs the command in the background, in its own session. Writes DIR/NAME.pid and DIR/NAME.log.
start() {
  local name=$1 dir=$2; shift 2
  setsid "$@" >"$dir/$name.log" 2>&1 </dev/null &
  echo $! >"$dir/$name.pid"
}
alive() { [ -s "$1" ] && kill -0 "$(cat "$1")" 2>/dev/null; }

# stop NAME DIR [SECONDS]: stops the process of DIR/NAME.pid if it still has that name. Kills it after SECONDS.
stop() {
  local name=$1 dir=$2 left=$((${3:-15} * 5)) pid
  [ -s "$dir/$name.pid" ] || return 0
  pid=$(cat "$dir/$name.pid")
  if tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -q "$name"; then
    kill "$pid" 2>/dev/null
    while kill -0 "$pid" 2>/dev/null && [ $left -gt 0 ]; do sleep 0.2; left=$((left - 1)); done
    kill -9 "$pid" 2>/dev/null
  fi
  rm -f "$dir/$name.pid"
}

# wait_for SECONDS COMMAND...: waits until the command succeeds
wait_for() {
  local end=$(( $(date +%s) + $1 )); shift
  until "$@" >/dev/null 2>&1; do [ "$(date +%s)" -lt $end ] || return 1; sleep 0.3; done
}

# mk_ca DIR ; mk_cert DIR NAME SUBJECT EKU [SAN]
mk_ca() {
  [ -s "$1/ca.crt" ] && return
  openssl req -x509 -newkey rsa:2048 -nodes -days 3650 -subj "/CN=kmesh-test-ca" \
    -keyout "$1/ca.key" -out "$1/ca.crt" 2>/dev/null
}
mk_cert() {
  local d=$1 n=$2 subj=$3 eku=$4 san=${5:-}
  openssl verify -CAfile "$d/ca.crt" "$d/$n.crt" >/dev/null 2>&1 && return   # exists already
  [ -s "$d/any.key" ] || openssl genrsa -out "$d/any.key" 2048 2>/dev/null   # one key for the whole folder, since each takes 0.1 s or more
  cp "$d/any.key" "$d/$n.key"
  openssl req -new -key "$d/$n.key" -subj "$subj" -out "$d/$n.csr" 2>/dev/null
  { echo "basicConstraints=CA:FALSE"; echo "keyUsage=digitalSignature,keyEncipherment"
    echo "extendedKeyUsage=$eku"; [ -z "$san" ] || echo "subjectAltName=$san"; } >"$d/$n.ext"
  openssl x509 -req -in "$d/$n.csr" -CA "$d/ca.crt" -CAkey "$d/ca.key" -CAcreateserial \
    -days 3650 -extfile "$d/$n.ext" -out "$d/$n.crt" 2>/dev/null
}

# mk_kubeconfig FILE SERVER CA CERT KEY
mk_kubeconfig() {
  cat >"$1" <<Y
apiVersion: v1
kind: Config
clusters:
- name: kmesh-test
  cluster: {server: "$2", certificate-authority-data: $(base64 -w0 "$3")}
users:
- name: user
  user: {client-certificate-data: $(base64 -w0 "$4"), client-key-data: $(base64 -w0 "$5")}
contexts:
- name: kmesh-test
  context: {cluster: kmesh-test, user: user}
current-context: kmesh-test
Y
}
# mk_token_kubeconfig FILE SERVER CA TOKEN
mk_token_kubeconfig() {
  cat >"$1" <<Y
apiVersion: v1
kind: Config
clusters:
- name: kmesh-test
  cluster: {server: "$2", certificate-authority-data: $(base64 -w0 "$3")}
users:
- name: user
  user: {token: "$4"}
contexts:
- name: kmesh-test
  context: {cluster: kmesh-test, user: user}
current-context: kmesh-test
Y
}
