#!/bin/bash
# build.sh builds the lab's programs into bin/: selvage-lab, selvage-kube (etcd, the Kubernetes programs and kubectl in one
# file), selvage-dns (CoreDNS) and kubectl. Kubernetes takes about ten CPU-minutes from nothing, so its result is kept under
# .cache/, by version and by the hash of everything it is made from; the second time is instant.
#
#   K8S_VERSION  1.37.2 (default), 1.36.3 or 1.34.4; others than the default become bin/selvage-kube-VERSION
#   VERSION      what selvage-lab calls itself, and the tag of the images it makes; default dev
#   GO           the go command; default go
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD go=${GO:-go} default=1.37.2
version=${K8S_VERSION:-$default}
cache=$root/.cache/lab bin=$root/bin
mkdir -p "$cache" "$bin"

die() { echo "lab/build.sh: $1" >&2; echo "  next: $2" >&2; exit 2; }
command -v "$go" >/dev/null || die "there is no $go" "install Go 1.26 and put it on the PATH"

modfile=go.mod
[ "$version" = "$default" ] || modfile=go-$version.mod
[ -f "lab/kubernetes/$modfile" ] || die "Kubernetes $version is not prepared" \
	"K8S_VERSION=$default, or one of: $(cd lab/kubernetes && ls go-*.mod | sed -E 's/go-(.*)\.mod/\1/' | xargs)"

# One build at a time: two would do the same work twice.
exec 9>"$cache/lock"
flock 9

# key FILES... prints the hash of the compiler and the files.
key() { { "$go" env GOVERSION GOOS GOARCH; cat "$@"; } | sha256sum | cut -c1-16; }

# while_waiting TEXT prints TEXT now, and every half minute how long it has been, until it is killed.
while_waiting() {
	local began=$SECONDS
	echo "$1" >&2
	while sleep 30; do printf '  … %d:%02d\n' $(((SECONDS - began) / 60)) $(((SECONDS - began) % 60)) >&2; done
}

# build FILE TEXT DIR ARGS... builds the package in DIR into FILE, unless that is there.
build() {
	local file=$1 text=$2 dir=$3
	shift 3
	[ -x "$file" ] && return
	while_waiting "$text" 9>&- &
	local ticker=$!
	trap "kill $ticker 2>/dev/null || true" EXIT
	CGO_ENABLED=0 "$go" build -C "$dir" -trimpath -o "$file.new" "$@" . || die "cannot build ${file##*/}" \
		"read the message above; the modules come from GOPROXY=$("$go" env GOPROXY), the link of Kubernetes wants 2.5 GB of memory"
	kill $ticker 2>/dev/null || true
	trap - EXIT
	mv "$file.new" "$file"
}

# place FILE NAME makes bin/NAME that file, by link where one file system has both. A program that runs keeps its old file.
place() {
	[ "$1" -ef "$bin/$2" ] && return
	ln -f "$1" "$bin/$2.new" 2>/dev/null || cp "$1" "$bin/$2.new"
	mv -f "$bin/$2.new" "$bin/$2"
}

minor=${version#1.} minor=${minor%%.*}
flags="-s -w"
for p in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
	flags="$flags -X $p.gitVersion=v$version -X $p.gitMajor=1 -X $p.gitMinor=$minor -X $p.gitTreeState=clean"
done
k=lab/kubernetes
kube=$cache/kube-$version-$(key $k/main.go "$k/$modfile" "$k/${modfile%.mod}.sum")
build "$kube" "building Kubernetes $version from its modules: about ten CPU-minutes, once" $k -modfile="$modfile" -ldflags "$flags"
name=selvage-kube
[ "$version" = "$default" ] || name=selvage-kube-$version
place "$kube" $name
if [ "$version" = "$default" ] || [ ! -e "$bin/kubectl" ]; then ln -sf $name "$bin/kubectl"; fi

dns=$cache/dns-$(key lab/dns/main.go lab/dns/go.mod lab/dns/go.sum)
build "$dns" "building CoreDNS from its module: about one CPU-minute, once" lab/dns -ldflags "-s -w"
place "$dns" selvage-dns

CGO_ENABLED=0 "$go" build -C lab -trimpath -ldflags "-s -w -X main.version=${VERSION:-dev}" -o "$bin/" ./cmd/...
