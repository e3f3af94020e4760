# shellcheck shell=sh
UNITS=""
MANAGE=/usr/lib/airflow-edge-runtime/edge-runtime

set_up() {
    "$MANAGE" deploy
}

after_upgrade() {
    read_units_again
    renew_runner
}

# What a task still runs from stays: it is told, and left to the administrator.
before_removal() {
    "$MANAGE" remove
}

after_removal() {
    read_units_again
}

purge() {
    rm -rf /opt/airflow-edge-runtime /var/lib/airflow-edge-runtime /etc/airflow-edge-runtime
}
