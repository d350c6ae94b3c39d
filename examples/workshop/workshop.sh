#!/bin/bash
# Breaks a small shop in one way, in a network namespace of its own, and lets kmesh-trace explain find it. As root:
#
#    examples/workshop/workshop.sh refused
#
# The faults: refused, no_answer, resets, accept_queue, slow_connect, loss, not_closed, churn.
# KMESH_TRACE names the program, if it is not in $PATH. Needs python3, and for some faults nft.
set -eu
fault=${1:?"write one of: refused no_answer resets accept_queue slow_connect loss not_closed churn"}
tool=${KMESH_TRACE:-kmesh-trace}
folder=$(cd "$(dirname "$0")" && pwd)

# Everything below runs in a new network namespace, which ends with this script.
if [ "${WORKSHOP:-}" != inside ]; then
    WORKSHOP=inside exec unshare --net -- "$0" "$fault"
fi
ip link set lo up
# Each fault has its port, since kmesh-trace sees the connections of all namespaces.
case $fault in
refused) port=8441 ;; no_answer) port=8442 ;; resets) port=8443 ;; accept_queue) port=8444 ;;
slow_connect) port=8445 ;; loss) port=8446 ;; not_closed) port=8447 ;; churn) port=8448 ;;
*) echo "no such fault: $fault" >&2; exit 2 ;;
esac
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
esac
"$tool" explain --no-resolve --port $port --duration 26s &
watch=$!
sleep 1
python3 "$folder/shop.py" "$fault" $port
wait $watch
