#!/bin/sh
# Installs or upgrades airflow-edge-agent and its task runtime from the files beside this script. A repository is asked
# only for what they depend on and the system does not have: Python, ca-certificates.
#
#   install.sh [--fingerprint FINGERPRINT] [--agent-only]
#
# With a fingerprint, which the sender has told you by another way, the signature of all files is checked; needs gpg.
set -eu
cd "$(dirname "$0")"

fail() {
    echo "install.sh: $*" >&2
    exit 1
}

# By the name that it has, in shell patterns.
newest() {
    find . -maxdepth 1 -name "$1" | sort -V | tail -n 1
}

expected=""
only=""
while [ $# -gt 0 ]; do
    case "$1" in
        --fingerprint)
            [ $# -ge 2 ] || fail "--fingerprint: what is it?"
            expected=$(echo "$2" | tr -d ' ')
            [ "${#expected}" -ge 40 ] || fail "--fingerprint $2: give all of it, 40 hexadecimal digits"
            shift
            ;;
        --agent-only) only=yes ;;
        *) fail "$1: unknown; usage: install.sh [--fingerprint FINGERPRINT] [--agent-only]" ;;
    esac
    shift
done

if [ -n "$expected" ]; then
    command -v gpg >/dev/null || fail "gpg is not here, so the signature cannot be checked"
    home=$(mktemp -d)
    trap 'rm -rf "$home"' EXIT
    gpg --homedir "$home" --batch --quiet --import airflow-edge-agent.gpg || fail "the key cannot be read"
    gpg --homedir "$home" --batch --status-fd 1 --verify SHA256SUMS.sig SHA256SUMS 2>/dev/null |
        grep -q "^\[GNUPG:\] VALIDSIG .*$expected" || fail "the files are not signed with the key $expected"
fi
sha256sum --check --quiet --strict SHA256SUMS || fail "the files are damaged: copy the bundle again"
[ "$(id -u)" -eq 0 ] || fail "installing needs root; try with sudo"

# The build for this system's own Python, of those that are here; the newest of several.
python=""
for minor in 20 19 18 17 16 15 14 13 12 11; do
    if [ -x "/usr/bin/python3.$minor" ] && [ -n "$(newest "*.py3${minor}[_.]*")" ]; then
        python=3$minor
        break
    fi
done
[ -n "$python" ] || fail "no package here is for a Python of this system; see /usr/bin/python3.*"

files=""
for name in airflow-edge-agent airflow-edge-runtime; do
    if [ "$name" = airflow-edge-runtime ] && [ -n "$only" ]; then
        continue
    fi
    if command -v dpkg >/dev/null; then
        file=$(newest "${name}_*.py${python}_$(dpkg --print-architecture).deb")
    else
        file=$(newest "$name-[0-9]*.py$python.$(uname -m).rpm")
    fi
    [ -n "$file" ] || fail "no $name for Python $python and this processor is here"
    files="$files $file"
done

# shellcheck disable=SC2086 # names without blanks, from this bundle
if command -v apt-get >/dev/null; then
    DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends --allow-downgrades install $files
elif command -v dnf >/dev/null; then
    dnf -y --disablerepo='*' --setopt=install_weak_deps=False install $files
else
    rpm --upgrade --oldpackage $files
fi
echo "Installed. Next: edgectl enroll https://... && systemctl enable --now edge-agent"
