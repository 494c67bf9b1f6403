#!/bin/bash
# acceptance.sh: measures compatibility with an installed Istio. It builds istioctl from its Go module (about ten CPU-minutes, once)
# for Istio's own injection templates; both stay in .cache. Anybody can run what needs nothing else: the same manifests injected by
# `istioctl kube-inject` and by us with Istio's ConfigMaps, and Istio's ConfigMaps in a lab. Istio's test data, which is not in this
# repository, is measured where ACCEPTANCE_DIR names its folder.
set -euo pipefail
cd "$(dirname "$0")/.."
GO=${GO:-$(tools/find-go.sh)}
version=$(awk '$1 == "istio.io/istio" { print $2; exit }' tools/istio/go.mod)
manifest=$PWD/.cache/istio-$version.yaml
if [ ! -s "$manifest" ] || [ ! -x .cache/istioctl ]; then
  echo "building istioctl (some minutes, once)" >&2
  mkdir -p .cache
  (cd tools/istio && nice -n 10 "$GO" build -o ../../.cache/istioctl istio.io/istio/istioctl/cmd/istioctl)
  .cache/istioctl manifest generate > "$manifest.new" && mv "$manifest.new" "$manifest"
fi
export ISTIOCTL=$PWD/.cache/istioctl ISTIO_MANIFEST=$manifest
tests() { grep -v '^=== \|^ *--- PASS\|^ *--- SKIP\|^PASS\|^ok '; }
data=$(realpath -m "${ACCEPTANCE_DIR:-../shared/acceptance}")
if [ -d "$data" ]; then
  export ACCEPTANCE_DIR=$data
else
  unset ACCEPTANCE_DIR
  echo "acceptance: there is no data of Istio's in $data: only what needs none is measured (ACCEPTANCE_DIR names the folder)"
fi
"$GO" test -count=1 -v ./acceptance | tests
if [ -x bin/selvage-lab ] && [ -x bin/selvaged ]; then
  "$GO" test -count=1 -v -tags istio -run '^TestIstiosConfigMap$' ./e2e | { grep '^ok\|^--- \|^    \|FAIL' || true; }
else
  echo "acceptance: Istio's ConfigMaps are not tried in a lab: run \`make build lab envoy\` first"
fi
