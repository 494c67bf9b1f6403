#!/bin/bash
# Measures selvaged beside istiod, which it builds the first time: one API server (a lab of level 1), the same objects, the same
# simulated sidecars, one server after the other. Both serve their plain listener on loopback. It prints a table for each size.
#   PROXIES="100 500 2000"  numbers of sidecars     SERVICES=1000 ENDPOINTS=5  the cluster      PROTOCOL=delta or sotw
#   SERVERS=istiod,selvaged what is measured        ROUNDS=3  runs of each, alternating         OUT=FILE  keeps every run
#   PROFILES=FOLDER         keeps profiles of selvaged
# All of it takes three quarters of an hour; a part takes less: PROXIES=100 ROUNDS=1 make bench-peer.
set -euo pipefail
cd "$(dirname "$0")/.."
GO=${GO:-$(tools/find-go.sh)}
servers=${SERVERS:-istiod,selvaged}
istiod=/nowhere
[[ $servers != *istiod* ]] || istiod=$(tools/istiod.sh)
"$GO" build -C bench/peer -o ../../.cache/bench-peer .
dir=$(mktemp -d)
out=${OUT:-$dir/runs.jsonl}
trap 'bin/selvage-lab down --dir "$dir/lab" >&2; rm -rf "$dir"' EXIT
bin/selvage-lab up --level 1 --mesh=false --machine-network --dir "$dir/lab" >&2
for proxies in ${PROXIES:-100 500 2000}; do
  .cache/bench-peer -kubeconfig "$dir/lab/kubeconfig" -istiod "$istiod" -servers "$servers" -services "${SERVICES:-1000}" \
    -endpoints "${ENDPOINTS:-5}" -proxies "$proxies" -protocol "${PROTOCOL:-delta}" -rounds "${ROUNDS:-3}" ${PROFILES:+-profiles "$PROFILES"} -out "$out" > /dev/null
done
.cache/bench-peer -report "$out"
