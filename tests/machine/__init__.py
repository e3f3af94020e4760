"""Debian machines for tests: roots built once, booted under systemd-nspawn or QEMU, driven from the outside."""
