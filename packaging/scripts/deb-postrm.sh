# shellcheck shell=sh
case "${1:-}" in
    remove) after_removal ;;
    purge) purge ;;
    upgrade | failed-upgrade | abort-install | abort-upgrade | disappear) ;;
    *)
        tell "postrm called with an unknown argument: ${1:-none}"
        exit 1
        ;;
esac
