# shellcheck shell=sh
case "${1:-}" in
    remove) before_removal ;;
    upgrade | deconfigure | failed-upgrade) ;;
    *)
        tell "prerm called with an unknown argument: ${1:-none}"
        exit 1
        ;;
esac
