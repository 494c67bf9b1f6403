#!/bin/bash
# Runs the tests that want nothing but a real API server (build tag apiserver), each package against a lab of its own: they
# change the cluster. The labs are of level 1 and without the mesh. Two packages run at a time, as most of theirs is waiting; what a
# package has said is written when it has ended, in one piece.
set -euo pipefail
cd "$(dirname "$0")/.."
SCRATCH=$(mktemp -d)
export SCRATCH
trap 'rm -rf "$SCRATCH"' EXIT
test_in_lab() { # MODULE PACKAGE [FLAGS…]
  local result=0
  dir=$(mktemp -d "$SCRATCH/lab.XXXXXX") # not local: the trap wants it when the function has ended
  trap 'bin/selvage-lab down --dir "$dir" >&2' EXIT
  bin/selvage-lab up --level 1 --mesh=false --dir "$dir" >&2
  SELVAGE_TEST_KUBECONFIG=$dir/kubeconfig "$GO" test -C "$1" -json -count=1 -timeout 20m -tags apiserver "${@:3}" "./$2" > "$dir.json" || result=1
  flock "$SCRATCH" cat "$dir.json"
  return $result
}
export -f test_in_lab
{
  echo . internal/install # the longest
  grep -rl --include='*_test.go' '^//go:build apiserver' cmd internal | xargs -n1 dirname | sort -u | sed '/^internal\/install$/d; s/^/. /'
  echo tools/helm . -run Upgrade # the others need no API server: make test-unit
} | xargs -P 2 -L 1 bash -euo pipefail -c 'test_in_lab "$@"' _
