#!/bin/bash
# mod.sh VERSION ETCD FILE writes the module file that builds Kubernetes VERSION with etcd ETCD: every staging module is
# replaced by the published v0 version of the same minor. Run it to move to a new Kubernetes; the result is committed.
set -euo pipefail
cd "$(dirname "$0")"
version=$1 etcd=$2 file=$3 staging="v0.${1#1.}"
source=$(go mod download -json "k8s.io/kubernetes@v$version" | sed -n 's/^\t"GoMod": "\(.*\)",$/\1/p')
cat >"$file" <<MOD
// Written by mod.sh $version $etcd $file; DO NOT EDIT.
module github.com/selvage-mesh/selvage/lab/kubernetes

go 1.26.0

godebug default=go1.26

require (
	github.com/spf13/cobra v1.10.2
	go.etcd.io/etcd/server/v3 v$etcd
	k8s.io/component-base $staging
	k8s.io/kubectl $staging
	k8s.io/kubernetes v$version
)

replace (
$(sed -nE 's|^\s+(k8s\.io/[a-z-]+) => \./staging.*|\1|p' "$source" | grep -v -- '/sample-' | sed "s|.*|\t& => & $staging|")
)
MOD
go mod tidy -modfile="$file"
