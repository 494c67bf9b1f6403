#!/bin/bash
# Runs the tests that want nothing but a real API server (build tag apiserver) against a lab of level 1 without the mesh.
set -euo pipefail
cd "$(dirname "$0")/.."
dir=$(mktemp -d)
trap 'bin/selvage-lab down --dir "$dir" >&2; rm -rf "$dir"' EXIT
bin/selvage-lab up --level 1 --mesh=false --dir "$dir" >&2
packages=$(grep -rl --include='*_test.go' '^//go:build apiserver' internal | xargs -n1 dirname | sort -u | sed 's|^|./|')
# one package after the other: they change the same cluster
SELVAGE_TEST_KUBECONFIG=$dir/kubeconfig "$GO" test -json -count=1 -p 1 -tags apiserver -run "${RUN:-.}" $packages
