# shellcheck shell=sh
UNITS=""
MANAGE=/usr/lib/airflow-edge-runtime/edge-runtime

set_up() {
    "$MANAGE" deploy
}

# The runner goes on with its tasks in the old runtime and starts a successor in the new one for those to come.
after_upgrade() {
    read_units_again
    if systemd_runs && systemctl --quiet is-active edge-runner.service &&
        [ "$(systemctl show --property=CanReload --value edge-runner.service)" = yes ]; then
        invoke reload edge-runner.service || tell "edge-runner.service was not reloaded: it keeps the old runtime until it is idle"
    fi
}

# What a task still runs from stays: it is told, and left to the administrator.
before_removal() {
    "$MANAGE" remove
}

after_removal() {
    read_units_again
}

purge() {
    rm -rf /opt/airflow-edge-runtime /var/lib/airflow-edge-runtime
}
