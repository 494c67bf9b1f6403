#!/bin/bash
# Prints the go command. sudo and cron reset PATH, so the usual places are looked at too.
set -uo pipefail
command -v go && exit 0
for p in /usr/local/go/bin/go /usr/lib/go-1.26/bin/go "${HOME:-/root}/go/bin/go"; do [ -x "$p" ] && echo "$p" && exit 0; done
if [ -n "${SUDO_USER:-}" ]; then sudo -u "$SUDO_USER" -i bash -lc 'command -v go' 2>/dev/null && exit 0; fi
echo "go-is-missing" # a command name that says it all when make tries it
echo "selvage: the go command is not on the PATH: install Go 1.26 or newer (https://go.dev/doc/install)" >&2
