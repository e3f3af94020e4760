#!/bin/sh
# Runs one agent in the foreground, without systemd, as the user edge-agent: what the container's process 1 starts.
# Configuration: EDGE_AGENT_* variables, and files mounted into /etc/airflow-edge-agent. The token is a file, see
# EDGE_AGENT_TOKEN_FILE: never a variable, which tasks and inspection would show.
set -eu
user=edge-agent
state=${EDGE_AGENT_STATE_DIR:-/var/lib/airflow-edge-agent}
run=${EDGE_AGENT_RUNTIME_DIR:-/run/airflow-edge-agent}
export EDGE_AGENT_STATE_DIR="$state" EDGE_AGENT_RUNTIME_DIR="$run"

if [ "$(id -u)" -eq 0 ]; then
    # A volume that has just been made belongs to root.
    install -d -o "$user" -g "$user" -m 0700 "$state"
    install -d -o "$user" -g "$user" -m 0755 "$run"
    if [ -r "${EDGE_AGENT_TOKEN_FILE:-}" ]; then
        # Mounted secrets belong to whoever made them on the host.
        install -o "$user" -g "$user" -m 0400 "$EDGE_AGENT_TOKEN_FILE" "$run/token"
        export EDGE_AGENT_TOKEN_FILE="$run/token"
    fi
    exec setpriv --reuid="$user" --regid="$user" --clear-groups --no-new-privs /usr/bin/edge-agent run "$@"
fi
exec /usr/bin/edge-agent run "$@"
