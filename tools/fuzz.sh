#!/bin/bash
# fuzz.sh TIME runs every fuzz target for TIME, one after the other. New failing inputs land in testdata/fuzz: commit them.
set -euo pipefail
time=${1:-30s}
grep -rlE --include='*_test.go' '^func Fuzz' internal cmd | xargs -n1 dirname | sort -u | while read -r dir; do
  for target in $(grep -hoE '^func Fuzz[A-Za-z0-9_]+' "$dir"/*_test.go | sed 's/func //' | sort -u); do
    echo "== $dir $target for $time" >&2
    "$GO" test -run '^$' -fuzz "^$target\$" -fuzztime "$time" "./$dir"
  done
done
