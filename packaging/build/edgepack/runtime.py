"""Stages the package ``airflow-edge-runtime``: the Python environment that tasks run in.

Its files are below ``/usr/lib/airflow-edge-runtime/<id>``; ``edge-runtime deploy`` gives them a second name below
``/opt/airflow-edge-runtime/<id>``, from where tasks run, and for which they are compiled.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from edgepack import bytecode, environment, sbom
from edgepack.context import Context
from edgepack.stage import Stage

NAME = "airflow-edge-runtime"
PAYLOAD = f"/usr/lib/{NAME}"
DEPLOYED = f"/opt/{NAME}"
SDK = "apache-airflow-task-sdk"
_EXTRAS = "import os, sys; p = os.path.realpath(sys.prefix + '/extras'); os.path.isdir(p) and sys.path.append(p)\n"
"""What was added with ``edgectl runtime``: last, so that it replaces nothing; resolved, so that it stays what it is."""


def stage(context: Context) -> Stage:
    """Put all files of the package where they belong."""
    rules = context.description["runtime"]["left_out"]
    pins = context.lock.of_group("runtime")
    result = Stage(context.work / "runtime", own=[PAYLOAD, f"/usr/share/doc/{NAME}"])
    filling = context.work / "runtime-filling"
    site = filling / "lib" / f"python{context.target.version}" / "site-packages"
    site.mkdir(parents=True)
    scratch = context.work / "runtime-pins"
    environment.install(pins, site, context.target, lock=context.lock, scratch=scratch)
    names = frozenset(environment.canonical(name) for rule in rules["distributions"] for name in rule["names"])
    gone = environment.leave_out(site, names)
    environment.leave_out_files(site, [pattern for rule in rules["files"] for pattern in rule["patterns"]])
    environment.normalise(site)
    environment.make(filling, context.target.interpreter, context.target)
    _make_share(filling / "share", context, gone)
    (site / "airflow-edge-extras.pth").write_text(_EXTRAS, encoding="utf-8")
    environment.set_modes(filling)

    runtime_id = _id(context, filling)
    folder = result.path(f"{PAYLOAD}/{runtime_id}")
    shutil.move(filling, folder)
    interpreter = context.interpreter
    final = f"{DEPLOYED}/{runtime_id}"
    bytecode.compile_tree(folder / "lib", stage=folder, final=final, interpreter=interpreter)
    result.write(f"{PAYLOAD}/id", f"{runtime_id}\n")
    source = context.root / "packaging/runtime"
    for name in ("edge-runtime", "python"):
        result.copy(source / name, f"{PAYLOAD}/{name}", 0o755)
    for name in ("airflow-edge-runtime-clean.service", "airflow-edge-runtime-clean.timer"):
        result.copy(source / name, f"/usr/lib/systemd/system/{name}")
    timer = "airflow-edge-runtime-clean.timer"
    result.link(f"/usr/lib/systemd/system/timers.target.wants/{timer}", f"../{timer}")
    parts = sbom.components(folder / site.relative_to(filling))
    context.put_papers(result, NAME, context.lock.version(SDK), parts)
    return result


def _make_share(share: Path, context: Context, gone: list[environment.LeftOut]) -> None:
    """Write what is needed to add further providers: what is pinned, what was left out."""
    share.mkdir()
    shutil.copyfile(context.root / "packaging/runtime/extras.py", share / "extras.py")
    # Of a release of its own choice: Debian's is not on every machine, and refuses to work beside Debian's Python.
    environment.install(
        context.lock.of_group("packaging").only(frozenset({"pip"})),
        share / "pip", context.target, lock=context.lock, scratch=context.work / "pip-pins",
    )  # fmt: skip
    environment.normalise(share / "pip")
    constraints = "\n".join(context.lock.of_group("runtime").constraints)
    (share / "constraints.txt").write_text(f"{constraints}\n", encoding="utf-8")
    # As installed distributions without files: so pip knows that nobody misses them.
    for item in gone:
        info = share / "left-out" / f"{item.name.replace('-', '_')}-{item.version}.dist-info"
        info.mkdir(parents=True)
        text = f"Metadata-Version: 2.1\nName: {item.name}\nVersion: {item.version}\n"
        (info / "METADATA").write_text(text, encoding="utf-8")


def _id(context: Context, folder: Path) -> str:
    """Name a runtime by its version and by all that is in it: no two that differ ever share a folder."""
    digest = hashlib.sha256(f"{context.release} {context.target}".encode())
    for path in sorted(folder.rglob("*")):
        digest.update(f"\0{path.relative_to(folder)}\0".encode())
        if path.is_symlink():
            digest.update(str(path.readlink()).encode())
        elif path.is_file():
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return f"{context.lock.version(SDK)}-{context.release}-{digest.hexdigest()[:8]}"
