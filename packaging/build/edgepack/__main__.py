"""The build's command line: ``python -m edgepack packages``."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import sysconfig
import tempfile
from pathlib import Path

from edgepack import agent, audit, bundle, documents, elf, nfpm, repository, runtime, scripts
from edgepack.bytecode import find_interpreter
from edgepack.context import Context, read_description, source_date
from edgepack.faults import BuildError
from edgepack.lock import Lock
from edgepack.stage import Format, Stage
from edgepack.target import Target

ROOT = Path(__file__).resolve().parents[3]
_FORMATS: tuple[Format, ...] = ("deb", "rpm")
_ARCHES = {"x86_64": "amd64", "aarch64": "arm64"}


def main() -> int:
    """Run it and return the exit code."""
    arguments = _parser().parse_args()
    try:
        return int(arguments.act(arguments))
    except BuildError as error:
        print(f"edgepack: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="edgepack", description="Build the operating system's packages.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    packages = commands.add_parser("packages", help="build .deb and .rpm of agent and runtime")
    packages.add_argument("--python", default="3.11", metavar="3.N", help="the distribution's Python (default: 3.11)")
    packages.add_argument("--arch", default=_ARCHES.get(platform.machine(), "amd64"), help="amd64 or arm64")
    packages.add_argument("--release", default="1", help="tells builds of one version apart (default: 1)")
    packages.add_argument("--interpreter", metavar="FILE", help="Python of that version to compile with")
    packages.add_argument("--fast", action="store_true", help="compress .deb with gzip: quicker, a quarter larger")
    packages.add_argument("--only", choices=("agent", "runtime"), help="build one of the two")
    packages.add_argument("--into", type=Path, default=ROOT / "dist/packages", metavar="DIR", help="where to put them")
    packages.set_defaults(act=_packages)
    repo = commands.add_parser("repository", help="make a signed apt and a signed yum repository")
    repo.add_argument("--packages", type=Path, default=ROOT / "dist/packages", metavar="DIR", help="what to put in")
    repo.add_argument("--into", type=Path, default=ROOT / "dist/repository", metavar="DIR", help="where to put it")
    repo.add_argument("--key", required=True, help="fingerprint or e-mail address of the secret key to sign with")
    repo.set_defaults(act=_repository)
    one = commands.add_parser(
        "bundle", help="make one file of packages, key and an installer, for sites without a repository"
    )
    one.add_argument("--packages", type=Path, default=ROOT / "dist/packages", metavar="DIR", help="what to put in")
    one.add_argument("--into", type=Path, default=ROOT / "dist", metavar="DIR", help="where to put it")
    one.add_argument("--key", required=True, help="fingerprint or e-mail address of the secret key to sign with")
    one.set_defaults(act=_bundle)
    docs = commands.add_parser("documents", help="write manual pages, completions and agent.toml, to look at")
    docs.add_argument("--into", type=Path, default=ROOT / "dist/documents", metavar="DIR", help="where to put them")
    docs.set_defaults(act=_documents)
    check = commands.add_parser("audit", help="ask about known vulnerabilities, and write bills of materials")
    check.add_argument("--into", type=Path, default=ROOT / "dist/audit", metavar="DIR", help="where to put the bills")
    check.set_defaults(act=_audit)
    return parser


def _packages(arguments: argparse.Namespace) -> int:
    target = Target.parse(arguments.python, arguments.arch)
    if not arguments.release.replace(".", "").isalnum():
        raise BuildError(f"--release {arguments.release}: letters, digits and dots only")
    interpreter = find_interpreter(target, arguments.interpreter)
    os.umask(0o022)
    with tempfile.TemporaryDirectory(prefix="edgepack-") as work:
        context = Context(
            root=ROOT,
            work=Path(work),
            target=target,
            lock=Lock(ROOT),
            interpreter=interpreter,
            epoch=source_date(ROOT),
            release=arguments.release,
            deb_compression="gzip" if arguments.fast else "xz",
            description=read_description(ROOT),
        )
        if arguments.only in (None, "agent"):
            build(context, agent.NAME, agent.version(ROOT), agent.stage(context), arguments.into)
        if arguments.only in (None, "runtime"):
            build(context, runtime.NAME, context.lock.version(runtime.SDK), runtime.stage(context), arguments.into)
    return 0


def build(context: Context, name: str, version: str, stage: Stage, into: Path) -> list[Path]:
    """Make a package in both formats from what is staged, and say how large it is."""
    kind = name.removeprefix("airflow-edge-")
    needs = elf.needs(stage.root, context.target)
    package = nfpm.Package(
        name=name,
        version=version,
        release=context.release,
        about=context.description[kind],
        vendor=context.description["vendor"],
        depends={
            "deb": [*context.target.deb_depends, *needs.deb_depends],
            "rpm": [*context.target.rpm_requires, *needs.rpm_requires],
        },
        target=context.target,
        deb_compression=context.deb_compression,
    )
    folder = context.work / f"{kind}-scripts"
    scripts.render(ROOT / "packaging/scripts", kind, folder, {"PACKAGE": name})
    size, files = stage.size()
    made = [nfpm.pack(package, stage, format_, scripts=folder, into=into, epoch=context.epoch) for format_ in _FORMATS]
    for path in made:
        print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB, installed {size / 1e6:.1f} MB in {files} files")
    return made


def _repository(arguments: argparse.Namespace) -> int:
    repository.make(arguments.packages, arguments.into, arguments.key)
    print(f"{arguments.into}: see README there")
    return 0


def _bundle(arguments: argparse.Namespace) -> int:
    name = f"{agent.NAME}-{agent.version(ROOT)}-bundle"
    installer = ROOT / "packaging/bundle/install.sh"
    made = bundle.make(
        arguments.packages, arguments.into / f"{name}.tar", arguments.key, installer=installer, epoch=source_date(ROOT)
    )
    print(f"{made}: {made.stat().st_size / 1e6:.1f} MB")
    return 0


def _documents(arguments: argparse.Namespace) -> int:
    texts = documents.make(agent.entries(ROOT), version=agent.version(ROOT), epoch=source_date(ROOT))
    documents.write_to(texts, arguments.into)
    print(f"{arguments.into}: {len(list(arguments.into.iterdir()))} files")
    return 0


def _audit(arguments: argparse.Namespace) -> int:
    site = Path(sysconfig.get_path("purelib"))
    return 0 if audit.everything(ROOT, site, arguments.into) else 1


if __name__ == "__main__":
    sys.exit(main())
