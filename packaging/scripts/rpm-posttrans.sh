# shellcheck shell=sh
# After all packages are in place, so that agent and runtime change together. On a new installation nothing runs yet.
after_upgrade
