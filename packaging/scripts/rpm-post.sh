# shellcheck shell=sh
# RPM tells how many versions there will be: 1 is a new installation.
set_up
if [ "${1:-1}" -eq 1 ]; then
    register_units $UNITS
fi
