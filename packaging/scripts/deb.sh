# shellcheck shell=sh
# Act on a unit unless policy-rc.d forbids it.
invoke() {
    if command -v deb-systemd-invoke >/dev/null; then
        deb-systemd-invoke "$@" >/dev/null
    fi
}

# Has another package been unpacked, and its postinst is still to run?
awaits_configuration() {
    [ "$(dpkg-query --show --showformat '${db:Status-Status}' "$1" 2>/dev/null)" = unpacked ]
}

# Keep what the administrator chose, also over a removal, and create links that a new version's unit asks for.
register_units() {
    command -v deb-systemd-helper >/dev/null || return 0
    for unit in "$@"; do
        if deb-systemd-helper debian-installed "$unit" && deb-systemd-helper --quiet was-enabled "$unit"; then
            deb-systemd-helper enable "$unit" >/dev/null || true
        fi
        deb-systemd-helper update-state "$unit" >/dev/null || true
    done
}

forget_units() {
    command -v deb-systemd-helper >/dev/null || return 0
    for unit in "$@"; do
        deb-systemd-helper purge "$unit" >/dev/null || true
    done
}
