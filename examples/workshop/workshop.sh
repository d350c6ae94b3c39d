#!/bin/bash
# Breaks a small shop in one way, in a network namespace of its own, and lets kmesh-trace explain find it. As root:
#
#    examples/workshop/workshop.sh refused
#
# The faults: refused, no_answer, resets, accept_queue, slow_connect, loss, slow_answers, held_back, not_closed, churn,
# one_of_many. Further arguments are flags of explain.
# KMESH_TRACE names the program, if it is not in $PATH. Needs python3, and for some faults nft.
set -eu
fault=${1:?"write a fault: refused no_answer resets accept_queue slow_connect loss slow_answers held_back not_closed churn one_of_many"}
shift
tool=${KMESH_TRACE:-kmesh-trace}
folder=$(cd "$(dirname "$0")" && pwd)
# Each fault has its port, since kmesh-trace sees the connections of all namespaces.
case $fault in
refused) port=8441 ;; no_answer) port=8442 ;; resets) port=8443 ;; accept_queue) port=8444 ;;
slow_connect) port=8445 ;; loss) port=8446 ;; not_closed) port=8447 ;; churn) port=8448 ;;
slow_answers) port=8449 ;; held_back) port=8450 ;; one_of_many) port=8451 ;;
*) echo "no such fault: $fault" >&2; exit 2 ;;
esac

# Starts the shop. Runs in a new network namespace, as pods do, which ends with it.
shop() {
    ip link set lo up
    case $fault in
    no_answer)
        nft add table inet shop
        nft add chain inet shop out '{ type filter hook output priority 0; }'
        nft add rule inet shop out tcp dport $port 'tcp flags & (syn|ack) == syn' drop
        ;;
    slow_connect)
        nft add table inet shop
        nft add chain inet shop out '{ type filter hook output priority 0; }'
        # Every third SYN is lost. The client sends it again after 1 s.
        nft add rule inet shop out tcp dport $port 'tcp flags & (syn|ack) == syn' numgen inc mod 3 0 drop
        ;;
    loss)
        nft add table inet shop
        nft add chain inet shop in '{ type filter hook input priority 0; }'
        nft add rule inet shop in tcp sport $port meta length '>' 500 numgen random mod 100 '<' 4 drop
        ;;
    one_of_many)
        # The addresses of the pods in pods.json.
        for last in 1 11 12 13; do ip address add 10.99.0.$last/32 dev lo; done
        ;;
    esac
    exec python3 "$folder/shop.py" "$fault" $port
}

if [ "${WORKSHOP:-}" = inside ]; then
    shop
fi
flags=--no-resolve
case $fault in
slow_answers) flags="$flags --turns" ;;
one_of_many) flags="--pods-file $folder/pods.json" ;;
esac
# shellcheck disable=SC2086
"$tool" explain $flags --port $port --duration 26s "$@" &
watch=$!
sleep 1
WORKSHOP=inside unshare --net -- "$0" "$fault" &
shop=$!
# The shop outlives the watch, since a process that ends closes its connections.
trap 'kill $shop 2>/dev/null || true' EXIT
wait $watch
