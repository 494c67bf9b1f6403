#!/bin/bash
# Runs the tests that want nothing but a real API server (build tag apiserver), each package against a lab of its own: they
# change the cluster. The labs are of level 1 and without the mesh.
set -euo pipefail
cd "$(dirname "$0")/.."
dir=$(mktemp -d)
trap 'bin/selvage-lab down --dir "$dir" >&2; rm -rf "$dir"' EXIT
failed=0
for package in $(grep -rl --include='*_test.go' '^//go:build apiserver' cmd internal | xargs -n1 dirname | sort -u); do
  bin/selvage-lab up --level 1 --mesh=false --dir "$dir" >&2
  SELVAGE_TEST_KUBECONFIG=$dir/kubeconfig "$GO" test -json -count=1 -timeout 20m -tags apiserver "./$package" || failed=1
  bin/selvage-lab down --dir "$dir" >&2
done
exit $failed
