# shellcheck shell=sh
UNITS="edge-agent.service"

# Users and folders; nothing here minds being done again.
set_up() {
    if command -v systemd-sysusers >/dev/null; then
        # Its words about each new user are no news.
        SYSTEMD_LOG_LEVEL=warning systemd-sysusers airflow-edge-agent.conf
    fi
    if command -v systemd-tmpfiles >/dev/null; then
        systemd-tmpfiles --create airflow-edge-agent.conf >/dev/null || true
    fi
    if command -v journalctl >/dev/null && [ -d /usr/lib/systemd/catalog ]; then
        journalctl --update-catalog >/dev/null 2>&1 || true
    fi
}

# The agent is restarted, the runner only renewed: tasks go on. A runner starts one successor at a time, so the package
# that is configured last asks for it.
after_upgrade() {
    read_units_again
    if ! awaits_configuration airflow-edge-runtime; then
        renew_runner
    fi
    if systemd_runs && systemctl --quiet is-active edge-agent.service; then
        invoke try-restart edge-agent.service || tell "edge-agent.service was not restarted and still runs the old version"
    fi
}

before_removal() {
    drain_and_stop
}

after_removal() {
    read_units_again
}

purge() {
    forget_units "$UNITS"
    if [ -e /var/lib/airflow-edge-agent ]; then
        tell "deleting this agent's identity, state and task logs"
    fi
    rm -rf /var/lib/airflow-edge-agent /var/lib/edge-runner /var/log/airflow-edge-agent /etc/airflow-edge-agent \
        /etc/systemd/system/edge-agent.service.d /etc/systemd/system/edge-runner.service.d \
        /etc/systemd/system/edge-runner.socket.d /run/airflow-edge-agent /run/edge-runner
    read_units_again
}
