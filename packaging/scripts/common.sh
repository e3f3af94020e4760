# shellcheck shell=sh
tell() {
    echo "@PACKAGE@: $*" >&2
}

systemd_runs() {
    [ -d /run/systemd/system ]
}

read_units_again() {
    if systemd_runs; then
        systemctl --system daemon-reload >/dev/null || true
    fi
}

# The runner goes on with its tasks and starts a successor, from the code and the runtime of now, for those to come.
renew_runner() {
    if systemd_runs && systemctl --quiet is-active edge-runner.service; then
        invoke reload edge-runner.service || tell "edge-runner.service was not reloaded: it stays as it is until it is idle"
    fi
}

# Seconds that a removal waits for tasks: from /etc/default/edge-agent, where a line can say so.
removal_deadline() {
    seconds=
    if [ -r /etc/default/edge-agent ]; then
        seconds=$(sed -n 's/^REMOVE_DRAIN_SECONDS=["'\'']\{0,1\}\([0-9]\{1,6\}\)["'\'']\{0,1\}[[:space:]]*$/\1/p' \
            /etc/default/edge-agent | tail -n 1)
    fi
    echo "${seconds:-300}"
}

# End agent, runner and tasks: the agent drains; after the deadline it is told to end its tasks, and after another
# minute nobody is asked any more.
drain_and_stop() {
    systemd_runs || return 0
    deadline=$(removal_deadline)
    invoke stop edge-agent.service &
    stopping=$!
    waited=0
    while kill -0 "$stopping" 2>/dev/null; do
        if [ "$waited" -eq 5 ] && [ "$deadline" -gt 5 ]; then
            tell "waiting up to $deadline s for running tasks (REMOVE_DRAIN_SECONDS in /etc/default/edge-agent)"
        fi
        if [ "$waited" -eq "$deadline" ]; then
            tell "ending the tasks that still run"
            systemctl kill --kill-who=main --signal=TERM edge-agent.service 2>/dev/null || true
        fi
        if [ "$waited" -ge $((deadline + 60)) ]; then
            systemctl kill --signal=KILL edge-agent.service 2>/dev/null || true
        fi
        sleep 1
        waited=$((waited + 1))
    done
    wait "$stopping" || true
    invoke stop edge-runner.socket || true
    invoke stop edge-runner.service || true
}
