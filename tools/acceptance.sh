#!/bin/bash
# acceptance.sh: measures compatibility with data that is not in this repository. It builds istioctl from its Go module (about ten
# CPU-minutes, once) for Istio's own injection templates; both stay in .cache.
set -euo pipefail
cd "$(dirname "$0")/.."
data=$(realpath -m "${ACCEPTANCE_DIR:-../shared/acceptance}")
[ -d "$data" ] || { echo "acceptance: there is no data in $data: nothing is measured (ACCEPTANCE_DIR names the folder)"; exit 0; }
manifest=$PWD/.cache/istio-$(sha256sum tools/istio/go.mod | cut -c1-12).yaml
if [ ! -s "$manifest" ]; then
  echo "building istioctl (some minutes, once)" >&2
  mkdir -p .cache
  (cd tools/istio && nice -n 10 "$GO" build -o ../../.cache/istioctl istio.io/istio/istioctl/cmd/istioctl)
  .cache/istioctl manifest generate > "$manifest.new" && mv "$manifest.new" "$manifest"
fi
ACCEPTANCE_DIR=$data ISTIO_MANIFEST=$manifest "$GO" test -count=1 -v ./acceptance | grep -v '^=== \|^--- PASS\|^PASS\|^ok '
