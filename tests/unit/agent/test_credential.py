"""The credential's file, the proofs that are made with it, and what a crash does to its replacement."""

from __future__ import annotations

import os
import re
import signal
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from airflow_edge_agent.adapters import credential as module
from airflow_edge_agent.adapters.credential import Credential, CredentialError, Prover, is_ours, read_credential
from airflow_edge_agent.adapters.keys import new_private_key, public_key, sign
from airflow_edge_agent.protocol.enrolment import PROOF_PATTERN, possession_message, proof_message
from airflow_edge_agent.protocol.frames import KeyStored
from fakes.credentials import CREDENTIAL, SECRET, make_prover, refusal, write_credential_file

NEW_ID = "fedcba9876543210"


class Clock:
    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def test_the_key_of_a_test_vector() -> None:
    # RFC 8032, 7.1, test 2.
    private = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
    assert public_key(private).hex() == "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
    assert sign(private, b"\x72").hex() == (
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
    )


def test_a_credential_is_what_was_written(tmp_path: Path) -> None:
    path = write_credential_file(tmp_path / "credential", f"  {CREDENTIAL}\r")
    assert read_credential(path) == Credential("0123456789abcdef", b"S" * 32)
    assert SECRET not in repr(read_credential(path))
    written = Credential(NEW_ID, new_private_key())
    module.write_credential(path, written)
    assert read_credential(path) == written
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601, 0o777])
def test_a_credential_that_others_may_read(tmp_path: Path, mode: int) -> None:
    with pytest.raises(CredentialError, match="chmod 600") as caught:
        read_credential(write_credential_file(tmp_path / "credential", mode=mode))
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "content", ["", "\n", CREDENTIAL[:-1], CREDENTIAL + "x", CREDENTIAL.upper(), "eat_0123456789abcdef_x", "x" * 5_000]
)
def test_garbage_is_no_credential(tmp_path: Path, content: str) -> None:
    with pytest.raises(CredentialError, match="edgectl enroll") as caught:
        read_credential(write_credential_file(tmp_path / "credential", content))
    assert "\n" not in str(caught.value)


def test_no_credential(tmp_path: Path) -> None:
    with pytest.raises(CredentialError, match="airflow edge-agents enroll"):
        read_credential(tmp_path / "credential")
    with pytest.raises(CredentialError, match="cannot be read"):
        read_credential(tmp_path)


def test_a_proof_is_signed_and_used_for_a_while() -> None:
    wall, monotonic = Clock(1_000_000), Clock(50)
    prover = make_prover(wall=wall, monotonic=monotonic)
    first = prover.header()
    match = re.fullmatch("Bearer " + PROOF_PATTERN, first)
    assert match is not None
    assert (match[1], match[2]) == ("0123456789abcdef", "1000000")
    key = Ed25519PublicKey.from_public_bytes(public_key(b"S" * 32))
    key.verify(module._decode(match[3]), proof_message(match[1], int(match[2])))
    monotonic.now += 29
    assert prover.header() == first
    monotonic.now += 2
    assert prover.header() != first


def test_the_time_is_the_servers_even_if_ours_is_set() -> None:
    wall, monotonic = Clock(1_000_000), Clock(50)
    prover = make_prover(wall=wall, monotonic=monotonic)
    assert not prover.was_late(refusal(1_000_030)["WWW-Authenticate"])
    assert prover.was_late(refusal(2_000_000)["WWW-Authenticate"])
    wall.now = 5
    monotonic.now += 10
    assert "_2000010_" in prover.header()
    for other in (None, "", "Bearer", 'Basic realm="proxy"', 'Bearer realm="edge-agents"'):
        assert not prover.was_late(other)
        assert not is_ours(other)


def test_the_next_key_is_used_once_the_server_has_it(tmp_path: Path) -> None:
    path = write_credential_file(tmp_path / "credential")
    prover = Prover(read_credential(path), path)
    assert not prover.adopt(KeyStored(credential_id=NEW_ID, public_key="0" * 64))
    frame = prover.new_key()
    key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(frame.public_key))
    key.verify(module._decode(frame.signature), possession_message("0123456789abcdef", frame.public_key))
    assert path.read_text().strip() == CREDENTIAL
    assert not prover.adopt(KeyStored(credential_id=NEW_ID, public_key="0" * 64))
    assert prover.adopt(KeyStored(credential_id=NEW_ID, public_key=frame.public_key))
    assert read_credential(path) == prover.credential
    assert f"eap_{NEW_ID}_" in prover.header()


@pytest.mark.parametrize(
    ("killed_in", "new"), [("open", False), ("fsync", False), ("replace", False), ("after replace", True)]
)
def test_a_kill_while_it_is_written_leaves_the_old_one_or_the_new(tmp_path: Path, killed_in: str, *, new: bool) -> None:
    path = write_credential_file(tmp_path / "credential")
    pid = os.fork()
    if pid == 0:
        try:
            _adopt_and_be_killed(path, killed_in)
        finally:
            os._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    found = read_credential(path)
    assert (found.id == NEW_ID) is new
    assert (found == Credential("0123456789abcdef", b"S" * 32)) is not new


def _adopt_and_be_killed(path: Path, where: str) -> None:
    def die(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    prover = Prover(read_credential(path), path)
    frame = prover.new_key()
    replace = Path.replace
    match where:
        case "open":
            os.open = die  # type: ignore[assignment]
        case "fsync":
            os.fsync = die
        case "replace":
            Path.replace = die  # type: ignore[assignment,method-assign]
        case _:

            def replace_and_die(self: Path, target: Path) -> Path:
                replace(self, target)
                os.kill(os.getpid(), signal.SIGKILL)
                return target

            Path.replace = replace_and_die  # type: ignore[assignment,method-assign]
    prover.adopt(KeyStored(credential_id=NEW_ID, public_key=frame.public_key))
