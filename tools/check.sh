#!/bin/bash
# check.sh: everything about the source that is not a test. It runs all checks and fails at the end when one failed.
set -uo pipefail
cd "$(dirname "$0")/.."
failed=0
step() { # NAME COMMAND…
  local name=$1 start=$SECONDS; shift
  if "$@"; then printf 'ok   %-16s %3ds\n' "$name" $((SECONDS - start)); else printf 'FAIL %-16s %3ds\n' "$name" $((SECONDS - start)); failed=1; fi
}
formatted() { local out; out=$("$(dirname "$GO")/gofmt" -l $(git ls-files '*.go')); [ -z "$out" ] || { echo "not formatted (run gofmt -w): $out"; return 1; }; }
vet() { "$GO" vet ./... && "$GO" vet -tags apiserver,istio,long ./... && (cd lab && "$GO" vet ./...) && (cd bench/peer && "$GO" vet ./...) && (cd tools/helm && "$GO" vet -tags apiserver ./...); }
# The tools build once into the cache, keyed by their go.sum: golangci-lint alone is minutes of compiling.
tools_built() {
  local key; key=$(sha256sum tools/go.sum | cut -c1-12)
  export TOOLS="$PWD/.cache/tools-$key"
  [ -x "$TOOLS/golangci-lint" ] && return
  echo "building the checkers (some minutes, once)" >&2
  mkdir -p "$TOOLS" && (cd tools && "$GO" build -o "$TOOLS/" github.com/golangci/golangci-lint/v2/cmd/golangci-lint golang.org/x/vuln/cmd/govulncheck golang.org/x/perf/cmd/benchstat)
}
lint() {
  "$TOOLS/golangci-lint" run ./... && (cd lab && "$TOOLS/golangci-lint" run --config ../.golangci.yml ./...) &&
    (cd bench/peer && "$TOOLS/golangci-lint" run --config ../../.golangci.yml ./...) &&
    (cd tools/helm && "$TOOLS/golangci-lint" run --config ../../.golangci.yml --build-tags apiserver ./...)
}
tidy() { "$GO" mod tidy -diff && (cd lab && "$GO" mod tidy -diff) && (cd bench/peer && "$GO" mod tidy -diff) && (cd tools && "$GO" mod tidy -diff) && (cd tools/helm && "$GO" mod tidy -diff); }
generated() { # what `make generate` would write is what is committed
  local before after; before=$(git status --porcelain); "$GO" generate ./... || return 1; after=$(git status --porcelain)
  [ "$before" = "$after" ] || { echo "generated files are out of date: run make generate"; git status --short; return 1; }
}
architecture() { "$GO" test -run 'Test(Imports|Package|Agent|Pure)' . >/dev/null && ! "$GO" list -deps ./cmd/selvage-agent | grep -E '^k8s.io/client-go' ; }
licences() { # only licences that the Apache licence can be shipped with
  (cd tools && "$GO" build -o "$TOOLS/licences" ./licences) && "$TOOLS/licences" ./cmd/...
}
vulnerabilities() { # needs the Go vulnerability database; without a way to it the check is not made, and says so
  local out; out=$("$TOOLS/govulncheck" ./... 2>&1) && return 0
  if grep -qE 'dial tcp|no such host|fetching vulnerabilities|Could not resolve|403 Forbidden' <<<"$out"; then
    echo "NOT CHECKED: the vulnerability database (vuln.go.dev) cannot be reached from here"; return 0
  fi
  echo "$out"; return 1
}
step format formatted
step tidy tidy
step vet vet
step tools tools_built
step lint lint
step generated generated
step architecture architecture
step licences licences
step vulnerabilities vulnerabilities
exit $failed
