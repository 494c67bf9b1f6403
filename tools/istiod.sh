#!/bin/bash
# istiod.sh: builds istiod from its Go module (three to ten CPU-minutes, once for each version) with the build tags of its releases, and
# prints where it is: .cache/istiod-VERSION. For the benchmarks that run it beside selvaged.
set -euo pipefail
cd "$(dirname "$0")/.."
GO=${GO:-$(tools/find-go.sh)}
version=$(awk '$1 == "istio.io/istio" { print $2; exit }' tools/istio/go.mod)
binary=$PWD/.cache/istiod-$version
if [ ! -x "$binary" ]; then
  echo "building istiod $version (some minutes, once)" >&2
  mkdir -p .cache
  (cd tools/istio && CGO_ENABLED=0 nice -n 10 "$GO" build -tags vtprotobuf,disable_pgv -ldflags '-s -w' -o "$binary.new" istio.io/istio/pilot/cmd/pilot-discovery)
  mv "$binary.new" "$binary"
fi
echo "$binary"
