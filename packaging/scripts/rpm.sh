# shellcheck shell=sh
invoke() {
    systemctl --quiet "$@"
}

# After a transaction nothing does.
awaits_configuration() {
    return 1
}

# As %systemd_post does: the preset decides, and ours says no.
register_units() {
    if [ -x /usr/lib/systemd/systemd-update-helper ]; then
        /usr/lib/systemd/systemd-update-helper install-system-units "$@" || true
    elif command -v systemctl >/dev/null; then
        systemctl --no-reload preset "$@" >/dev/null 2>&1 || true
    fi
}

forget_units() {
    if command -v systemctl >/dev/null; then
        systemctl --no-reload disable "$@" >/dev/null 2>&1 || true
    fi
}
