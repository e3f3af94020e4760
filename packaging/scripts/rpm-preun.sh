# shellcheck shell=sh
if [ "${1:-0}" -eq 0 ]; then
    before_removal
    forget_units $UNITS
fi
