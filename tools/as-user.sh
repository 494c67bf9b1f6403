#!/bin/bash
# as-user.sh COMMAND… runs it as the user who called sudo, with go on the PATH; without sudo it simply runs it.
set -euo pipefail
if [ "$(id -u)" = 0 ] && [ -n "${SUDO_USER:-}" ] && [ "$SUDO_USER" != root ]; then
  exec sudo -u "$SUDO_USER" -H env "PATH=$(dirname "$GO"):$PATH" "GO=$GO" "K8S_VERSION=$K8S_VERSION" "VERSION=$VERSION" "$@"
fi
exec "$@"
