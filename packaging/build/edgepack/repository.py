"""Makes a signed apt repository and a signed yum repository from package files.

Both are folders of plain files for any web server::

    apt/pool/*.deb            apt/dists/stable/...      (InRelease, Release.gpg)
    yum/*.rpm                 yum/repodata/...          (repomd.xml.asc)
    airflow-edge-agent.asc    airflow-edge-agent.gpg    the public key, as text and as apt's keyring

The key stays in the builder's GnuPG home (``GNUPGHOME``); it is named by its fingerprint or e-mail address.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from edgepack.faults import BuildError, run

KEY_NAME = "airflow-edge-agent"
_ARCHES = ("amd64", "arm64")

_README = """\
Packages of airflow-edge-agent. With BASE as the address of this folder:

Debian, Ubuntu:
    install -D -m 644 {key}.gpg /usr/share/keyrings/{key}.gpg
    cp {key}.sources /etc/apt/sources.list.d/    (after putting BASE into it)
    apt update && apt install airflow-edge-agent

Fedora, RHEL:
    cp {key}.repo /etc/yum.repos.d/              (after putting BASE into it)
    rpm --import {key}.asc
    dnf install airflow-edge-agent

The key's fingerprint, to be compared with what the sender of these packages says by another way:
    {fingerprint}
"""
_SOURCES = """\
Types: deb
URIs: BASE/apt
Suites: stable
Components: main
Signed-By: /usr/share/keyrings/{key}.gpg
"""
_REPO = """\
[{key}]
name=airflow-edge-agent
baseurl=BASE/yum
enabled=1
gpgcheck=0
repo_gpgcheck=1
gpgkey=BASE/{key}.asc
"""
"""The repository's index is signed, and holds the packages' hashes; the packages themselves are not signed again."""


def make(packages: Path, into: Path, key: str) -> None:
    """Make both repositories of all packages in a folder; those that are there already stay.

    :param key: fingerprint or e-mail address of a secret key in the GnuPG home.
    :raises BuildError: there are no packages, there is no such key, or a tool is missing.
    """
    debs, rpms = sorted(packages.glob("*.deb")), sorted(packages.glob("*.rpm"))
    if not debs and not rpms:
        raise BuildError(f"{packages}: no packages there; run 'make packages' first")
    own = fingerprint(key)
    into.mkdir(parents=True, exist_ok=True)
    _apt(debs, into / "apt", own)
    _yum(rpms, into / "yum", own)
    (into / f"{KEY_NAME}.asc").write_text(run(["gpg", "--batch", "--armor", "--export", own]), encoding="ascii")
    keyring = into / f"{KEY_NAME}.gpg"
    keyring.unlink(missing_ok=True)
    run(["gpg", "--batch", "--output", keyring, "--export", own])
    values = {"key": KEY_NAME, "fingerprint": own}
    for name, text in (("README", _README), (f"{KEY_NAME}.sources", _SOURCES), (f"{KEY_NAME}.repo", _REPO)):
        (into / name).write_text(text.format(**values), encoding="utf-8")


def fingerprint(key: str) -> str:
    """Return the fingerprint of a secret key.

    :param key: its fingerprint or e-mail address.
    :raises BuildError: there is none in the GnuPG home.
    """
    try:
        listing = run(["gpg", "--batch", "--with-colons", "--list-secret-keys", "--", key])
    except BuildError:
        raise BuildError(
            f"no secret key for '{key}' in {os.environ.get('GNUPGHOME', '~/.gnupg')}: make one with "
            f"'gpg --quick-generate-key {key} ed25519 sign never', or name yours with --key"
        ) from None
    return next(line.split(":")[9] for line in listing.splitlines() if line.startswith("fpr:"))


def _apt(debs: list[Path], top: Path, key: str) -> None:
    pool, suite = top / "pool", top / "dists/stable"
    pool.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(suite, ignore_errors=True)
    for path in debs:
        shutil.copyfile(path, pool / path.name)
    for arch in _ARCHES:
        folder = suite / f"main/binary-{arch}"
        folder.mkdir(parents=True)
        index = run(["apt-ftparchive", "--arch", arch, "packages", "pool"], cwd=top)
        (folder / "Packages").write_text(index, encoding="utf-8")
        run(["xz", "--keep", folder / "Packages"])
    options = {
        "Origin": KEY_NAME,
        "Label": KEY_NAME,
        "Suite": "stable",
        "Codename": "stable",
        "Architectures": " ".join(_ARCHES),
        "Components": "main",
        "Description": "airflow-edge-agent and its task runtime",
    }
    settings = [f"-oAPT::FTPArchive::Release::{name}={value}" for name, value in options.items()]
    release = run(["apt-ftparchive", *settings, "release", suite], cwd=top)
    (suite / "Release").write_text(release, encoding="utf-8")
    sign = ["gpg", "--batch", "--yes", "--local-user", key]
    run([*sign, "--armor", "--detach-sign", "--output", suite / "Release.gpg", suite / "Release"])
    run([*sign, "--clear-sign", "--output", suite / "InRelease", suite / "Release"])


def _yum(rpms: list[Path], top: Path, key: str) -> None:
    top.mkdir(parents=True, exist_ok=True)
    for path in rpms:
        shutil.copyfile(path, top / path.name)
    run(["createrepo_c", "--quiet", "--no-database", "--update", top])
    index = top / "repodata/repomd.xml"
    sign = ["gpg", "--batch", "--yes", "--local-user", key]
    run([*sign, "--armor", "--detach-sign", "--output", f"{index}.asc", index])
