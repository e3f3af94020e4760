"""Machines under QEMU: a Debian with a kernel of its own, cgroup v2 with all controllers, and one port to the outside.

Everything is emulated (TCG), so that it runs where there is no KVM; it is slow. Commands go in through a virtio-serial
port, at whose other end a small service of ours runs them.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.lasting import Lasting
from harness.processes import Keeper, Managed
from harness.waiting import WaitTimeoutError, wait_until
from machine.guest import RUN_SECONDS, Guest, GuestError

BOOT_SECONDS = 300.0
SERVER_ADDRESS = "10.0.2.100"
SERVER_PORT = 8080
"""Where the machine finds the one port of the host that it may reach."""
SLOWNESS = 6.0
"""What waiting is multiplied with: an emulated processor does about a tenth of a real one's work."""

_NEEDED = ("qemu-system-x86_64", "mke2fs", "mmdebstrap", "unshare")
_SLOW = 4.0
_DISK_SIZE = "4G"
_PORT_NAME = "edge.console"
_LONGEST_SOCKET_PATH = 100

_CONSOLE_SERVICE = f"""\
[Unit]
Description=Root's door for the tests
DefaultDependencies=no
After=local-fs.target
[Service]
ExecStart=/usr/bin/python3 -u /usr/lib/edge-test/console.py /dev/virtio-ports/{_PORT_NAME}
Restart=always
RestartSec=1
StandardError=journal+console
"""
_NETWORK = """\
[Match]
Name=eth0
[Network]
Address=10.0.2.15/24
"""
_RELAY = Path(__file__).with_name("relay.py")
_CONSOLE = Path(__file__).with_name("console.py")


def missing() -> str | None:
    """Say why no machine can be booted here; ``None`` if nothing is in the way."""
    if os.geteuid() != 0:
        return "making a machine's disk needs root"
    if absent := [name for name in _NEEDED if shutil.which(name) is None]:
        return f"not installed: {', '.join(absent)} (on Debian: apt-get install qemu-system-x86 e2fsprogs mmdebstrap)"
    return None


class QemuMachine(Lasting, Guest):
    """One machine with a disk of its own.

    :param folder: is created; holds the disk and the console's output.
    :param layers: see :class:`machine.image.Images`, uppermost first; the lowest one has a kernel.
    :param server_port: the one TCP port of our loopback that the machine can reach.
    :param prepare: puts files into the machine before it is first started; is given a folder that stands for its root.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keeper: Keeper,
        layers: list[Path],
        server_port: int,
        memory_mb: int = 2048,
        prepare: Callable[[Path], None] | None = None,
    ) -> None:
        self.folder = folder
        self.serial = folder / "serial.log"
        self._keeper = keeper
        self._kernel = layers[-1] / "boot"
        self._server_port = server_port
        self._memory_mb = memory_mb
        self._process: Managed | None = None
        self._socket: socket.socket | None = None
        self._stream: Any = None
        self._lock = threading.Lock()
        self._requests = 0
        folder.mkdir(parents=True)
        self._disk = folder / "disk.img"
        self._make_disk(layers, prepare)

    def _make_disk(self, layers: list[Path], prepare: Callable[[Path], None] | None) -> None:
        top = self.folder / "top"
        for path, text in {
            "usr/lib/edge-test/console.py": _CONSOLE.read_text(),
            "etc/systemd/system/edge-test-console.service": _CONSOLE_SERVICE,
            "etc/systemd/network/10-edge-test.network": _NETWORK,
            "etc/hostname": "edge-qemu\n",
        }.items():
            (top / path).parent.mkdir(parents=True, exist_ok=True)
            (top / path).write_text(text)
        wants = top / "etc/systemd/system/sysinit.target.wants"
        wants.mkdir(parents=True)
        (wants / "edge-test-console.service").symlink_to("../edge-test-console.service")
        wants = top / "etc/systemd/system/multi-user.target.wants"
        wants.mkdir(parents=True)
        (wants / "systemd-networkd.service").symlink_to("/lib/systemd/system/systemd-networkd.service")
        top.chmod(0o755)
        if prepare is not None:
            prepare(top)
        merged = self.folder / "merged"
        merged.mkdir()
        script = (
            'set -e; mount -t overlay overlay -o "lowerdir=$1" "$2"; '
            f'exec mke2fs -q -t ext4 -E lazy_itable_init=1,lazy_journal_init=1 -d "$2" "$3" {_DISK_SIZE}'
        )
        lower = ":".join(map(str, [top, *layers]))
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", script, "sh", lower, str(merged), str(self._disk)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            raise GuestError(f"the machine's disk could not be made: {done.stderr.strip()[-1000:]}", done.returncode)

    # Life cycle

    def start(self) -> None:
        """Start the machine and wait until systemd says that all is started, or that something failed.

        :raises GuestError: it ended instead.
        """
        kernel = next(iter(sorted(self._kernel.glob("vmlinuz-*"))))
        initrd = next(iter(sorted(self._kernel.glob("initrd.img-*"))))
        relay = f"{sys.executable} -I -S {_RELAY} {self._server_port}"
        argv: list[str | Path] = [
            "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", str(self._memory_mb),
            "-nodefaults", "-display", "none", "-monitor", "none",
            "-kernel", kernel, "-initrd", initrd,
            "-append", "root=/dev/vda rw console=ttyS0 net.ifnames=0 quiet mitigations=off random.trust_cpu=on",
            "-drive", f"file={self._disk},if=virtio,format=raw,cache=unsafe",
            "-serial", f"file:{self.serial}",
            "-device", "virtio-rng-pci", "-device", "virtio-serial-pci",
            "-chardev", "socket,id=console,path=console.sock,server=on,wait=off",
            "-device", f"virtserialport,chardev=console,name={_PORT_NAME}",
            "-netdev", f"user,id=net,restrict=on,guestfwd=tcp:{SERVER_ADDRESS}:{SERVER_PORT}-cmd:{relay}",
            "-device", "virtio-net-pci,netdev=net",
        ]  # fmt: skip
        self._process = self._keeper.spawn("qemu", argv, env={}, cwd=self.folder, log=self.folder / "qemu.log")
        wait_until(self._started, seconds=BOOT_SECONDS, what="the machine to boot", poll_seconds=1, seen=self._tail)

    def _started(self) -> bool:
        assert self._process is not None
        if not self._process.running:
            raise GuestError(f"QEMU ended with exit code {self._process.exit_code}: {self._process.tail(5)}")
        try:
            return self.run("systemctl", "is-system-running", check=False, seconds=10).strip() in {
                "running",
                "degraded",
            }
        except GuestError:
            return False

    def _tail(self) -> str:
        return self.serial.read_text(errors="replace")[-500:] if self.serial.exists() else ""

    def reboot(self) -> None:
        """Reboot it in good order, and wait until it is up again."""
        before = self.read("/proc/sys/kernel/random/boot_id")

        def again() -> bool:
            with contextlib.suppress(GuestError):
                return self.read("/proc/sys/kernel/random/boot_id") != before
            return False

        self.run("systemctl", "--no-block", "reboot")
        wait_until(again, seconds=BOOT_SECONDS, what="the machine to reboot", poll_seconds=1, seen=self._tail)
        wait_until(self._started, seconds=BOOT_SECONDS, what="the machine to boot", poll_seconds=1, seen=self._tail)

    def close(self) -> None:
        """End it, as a power failure would, and delete its disk."""
        self._hang_up()
        if self._process is not None and self._process.running:
            self._process.kill()
        self._disk.unlink(missing_ok=True)

    # Inside

    def result(
        self, *argv: str, user: str | None = None, seconds: float = RUN_SECONDS * _SLOW, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside, and return everything about its end.

        :raises GuestError: it did not end in time, or the machine does not answer.
        """
        command = ["env", "-i", *self.environment(), *self.as_user(user), *argv]
        with self._lock:
            self._requests += 1
            request = {"id": self._requests, "argv": command, "stdin": stdin or "", "seconds": seconds}
            try:
                answer = self._ask(request, seconds + 10)
            except (OSError, ValueError, EOFError) as error:
                self._hang_up()
                raise GuestError(f"'{' '.join(argv)}': the machine does not answer ({error})") from None
        if answer["code"] is None:
            raise GuestError(f"'{' '.join(argv)}' did not end within {seconds:g} s")
        return subprocess.CompletedProcess(argv, answer["code"], answer["stdout"], answer["stderr"])

    def _ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX)
            # Relative to a folder of ours, as the path may be too long for the kernel.
            with contextlib.chdir(self.folder):
                self._socket.connect("console.sock")
            self._stream = self._socket.makefile("rwb")
        self._socket.settimeout(seconds)
        self._stream.write(json.dumps(request).encode() + b"\n")
        self._stream.flush()
        while line := self._stream.readline():
            answer: dict[str, Any] = json.loads(line)
            # An older request may have been answered after we gave up on it.
            if answer.get("id") == request["id"]:
                return answer
        raise EOFError("it hung up")

    def _hang_up(self) -> None:
        for end in (self._stream, self._socket):
            if end is not None:
                with contextlib.suppress(OSError):
                    end.close()
        self._socket = self._stream = None


__all__ = ["QemuMachine", "WaitTimeoutError", "missing"]
