#!/bin/bash
# Runs the tests that want nothing but a real API server (build tag apiserver), each package against a lab of its own: they
# change the cluster. The labs are of level 1 and without the mesh.
set -euo pipefail
cd "$(dirname "$0")/.."
dir=$(mktemp -d)
trap 'bin/selvage-lab down --dir "$dir" >&2; rm -rf "$dir"' EXIT
failed=0
test_in_lab() { # MODULE PACKAGE [FLAGS…]
  bin/selvage-lab up --level 1 --mesh=false --dir "$dir" >&2
  SELVAGE_TEST_KUBECONFIG=$dir/kubeconfig "$GO" test -C "$1" -json -count=1 -timeout 20m -tags apiserver "${@:3}" "./$2" || failed=1
  bin/selvage-lab down --dir "$dir" >&2
}
for package in $(grep -rl --include='*_test.go' '^//go:build apiserver' cmd internal | xargs -n1 dirname | sort -u); do
  test_in_lab . "$package"
done
test_in_lab tools/helm . -run Upgrade # the others need no API server: make test-unit
exit $failed
