#!/bin/sh
# Runs one agent in the foreground, without systemd: what the container's process 1 starts. As root it becomes the user
# edge-agent; started as somebody else, as Kubernetes does it, it stays that user.
# Configuration: EDGE_AGENT_* variables, and files mounted into /etc/airflow-edge-agent. A new volume is enrolled with
# the join token in the file that JOIN_TOKEN_FILE names: never in a variable, which inspection would show.
set -eu
umask 0027
user=edge-agent
state=${EDGE_AGENT_STATE_DIR:-/var/lib/airflow-edge-agent}
run=${EDGE_AGENT_RUNTIME_DIR:-/run/airflow-edge-agent}
export EDGE_AGENT_STATE_DIR="$state" EDGE_AGENT_RUNTIME_DIR="$run"

set -- /usr/bin/edge-agent run "$@"
if [ "$(id -u)" -eq 0 ]; then
    # A volume that has just been made belongs to root.
    install -d -o "$user" -g "$user" -m 0700 "$state"
    install -d -o "$user" -g "$user" -m 0755 "$run"
    set -- setpriv --reuid="$user" --regid="$user" --clear-groups --no-new-privs "$@"
fi
if [ ! -e "$state/credential" ] && [ -s "${JOIN_TOKEN_FILE:-}" ]; then
    # As whoever we are here: mounted secrets belong to whoever made them on the host. The credential goes to the owner of
    # the state folder.
    /usr/bin/edgectl enroll --token-file "$JOIN_TOKEN_FILE"
fi
exec "$@"
