"""The agent's credential: a private key in a file of its own, and the proofs that are made with it.

The file holds one line, ``eac_<id>_<private key>``, the key in base64 for URLs.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from airflow_edge_agent.adapters.files import sync_folder, write_atomically
from airflow_edge_agent.adapters.keys import KEY_BYTES, new_private_key, public_key, sign
from airflow_edge_agent.protocol.enrolment import PROOF_SECONDS, REALM, possession_message, proof_message
from airflow_edge_agent.protocol.frames import KeyStored, NewKey

MAX_BYTES = 4_096

FRESH_SECONDS = 30.0
"""How long one proof is used: each costs a signature here, and a verification there."""

_FORM = re.compile(r"eac_([0-9a-f]{16})_([A-Za-z0-9_-]{43})")
_CHALLENGE = re.compile(rf'realm="{REALM}", *time="([0-9]{{1,12}})"')


class CredentialError(Exception):
    """The file with the credential cannot be used. The message says why and how to mend it."""


@dataclass(frozen=True)
class Credential:
    """A key pair that the server knows by an id."""

    id: str
    private_key: bytes = field(repr=False)

    def text(self) -> str:
        """Return what is in the file."""
        return f"eac_{self.id}_{_encode(self.private_key)}\n"


def read_credential(path: Path) -> Credential:
    """Read the agent's credential.

    :raises CredentialError: missing, damaged, or readable by others.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise CredentialError(
            f"{path}: this machine is not enrolled; make a join token on the server with 'airflow edge-agents enroll "
            "--name NAME' and run 'edgectl enroll URL' here"
        ) from None
    except OSError as error:
        raise CredentialError(f"{path}: the credential cannot be read ({error.strerror})") from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise CredentialError(
            f"{path}: others may read the credential (mode {stat.S_IMODE(mode):04o}); run: chmod 600 {path}"
        )
    match = _FORM.fullmatch(data.decode("ascii", errors="replace").strip())
    key = b"" if match is None else _decode(match[2])
    if match is None or len(key) != KEY_BYTES:
        raise CredentialError(f"{path}: holds no credential; enroll this machine again: edgectl enroll URL")
    return Credential(match[1], key)


def write_credential(path: Path, credential: Credential) -> None:
    """Write it, whole or not at all, for its owner alone.

    :raises OSError: the file is as before.
    """
    write_atomically(path, credential.text())
    # The server forgets the one before as soon as this one is used: a power cut must not bring that one back.
    sync_folder(path.parent)


def possession(private_key: bytes, subject: str) -> tuple[str, str]:
    """Return public key (hexadecimal) and a signature which shows that we have the private one.

    :raises KeyFault: OpenSSL cannot be used.
    """
    public = public_key(private_key).hex()
    return public, _encode(sign(private_key, possession_message(subject, public)))


class Prover:
    """Makes proofs for one credential after the other.

    The time in them is the server's, as last heard of: this machine's clock may be wrong, or be set meanwhile.

    :param path: where the next credential is written.
    """

    def __init__(
        self,
        credential: Credential,
        path: Path,
        *,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._credential = credential
        self._path = path
        self._monotonic = monotonic
        self._epoch = wall() - monotonic()
        """What is to be added to the monotonic clock to have the server's time."""
        self._proof = ""
        self._fresh_until = 0.0
        self._next: bytes | None = None

    @property
    def credential(self) -> Credential:
        """The one in use."""
        return self._credential

    def header(self) -> str:
        """Return the value of ``Authorization`` for a request that is made now.

        :raises KeyFault: OpenSSL cannot be used.
        """
        now = self._monotonic()
        if now >= self._fresh_until:
            moment = int(self._epoch + now)
            signature = sign(self._credential.private_key, proof_message(self._credential.id, moment))
            self._proof = f"eap_{self._credential.id}_{moment}_{_encode(signature)}"
            self._fresh_until = now + FRESH_SECONDS
        return f"Bearer {self._proof}"

    def set_clock(self, server_time: float) -> None:
        """Take note of the server's time, in seconds since 1970."""
        self._epoch = server_time - self._monotonic()
        self._fresh_until = 0.0

    def was_late(self, challenge: str | None) -> bool:
        """Tell whether a refusal may be due to the time in our proof; the next one has the right time.

        :param challenge: ``WWW-Authenticate`` of the refusal.
        """
        match = _CHALLENGE.search(challenge or "")
        if match is None:
            return False
        ours = self._epoch + self._monotonic()
        self.set_clock(float(match[1]))
        return abs(ours - float(match[1])) > PROOF_SECONDS / 2

    def new_key(self) -> NewKey:
        """Make the next key pair. It is kept in memory alone: until it is stored at the server, it is good for nothing.

        :raises KeyFault: OpenSSL cannot be used.
        """
        self._next = new_private_key()
        public, signature = possession(self._next, self._credential.id)
        return NewKey(public_key=public, signature=signature)

    def adopt(self, frame: KeyStored) -> bool:
        """Use the next key from now on, once it is safely in the file; return whether it is the one that was stored.

        :raises OSError: it cannot be written, and the present one stays.
        """
        if self._next is None or public_key(self._next).hex() != frame.public_key:
            return False
        credential = Credential(frame.credential_id, self._next)
        write_credential(self._path, credential)
        self._credential, self._next, self._fresh_until = credential, None, 0.0
        return True


def is_ours(challenge: str | None) -> bool:
    """Tell whether a refusal is the agent API's, and not that of a proxy before it."""
    return _CHALLENGE.search(challenge or "") is not None


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode("ascii").rstrip("=")


def _decode(text: str) -> bytes:
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError):
        return b""
