#!/bin/bash
# Measures what wants a real API server (build tag apiserver), in a lab of level 1 without the mesh: certificates for callers with new
# tokens, roots in 2,000 namespaces. BENCH=REGEXP chooses; docs/performance.md has figures.
set -euo pipefail
cd "$(dirname "$0")/.."
GO=${GO:-$(tools/find-go.sh)}
dir=$(mktemp -d)
trap 'bin/selvage-lab down --dir "$dir" >&2; rm -rf "$dir"' EXIT
bin/selvage-lab up --level 1 --mesh=false --dir "$dir" >&2
export SELVAGE_TEST_KUBECONFIG=$dir/kubeconfig
bench() { # PACKAGE NAME BENCHTIME
  [[ $2 =~ ${BENCH:-.} ]] || return 0
  "$GO" test -tags apiserver -run '^$' -bench "$2" -benchtime "$3" "./internal/$1"
}
bench ca NewTokens 3000x
bench reconcile RootsOf2000Namespaces 1x
