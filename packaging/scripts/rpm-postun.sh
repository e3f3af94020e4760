# shellcheck shell=sh
# Configuration, identity and state stay: RPM has no purge. docs/packages.md says how to delete them.
if [ "${1:-0}" -eq 0 ]; then
    after_removal
fi
