# shellcheck shell=sh
case "${1:-}" in
    configure)
        set_up
        register_units $UNITS
        if [ -n "${2:-}" ]; then
            after_upgrade
        else
            read_units_again
        fi
        ;;
    abort-upgrade | abort-remove | abort-deconfigure)
        set_up
        register_units $UNITS
        ;;
    triggered) ;;
    *)
        tell "postinst called with an unknown argument: ${1:-none}"
        exit 1
        ;;
esac
