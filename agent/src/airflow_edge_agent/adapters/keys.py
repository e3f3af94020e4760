"""Ed25519 by OpenSSL's libcrypto, which Python's own ssl module has loaded already.

A package for this would be larger than the whole agent; what is needed of it are these few calls.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache

KEY_BYTES = 32
SIGNATURE_BYTES = 64

_ED25519 = 1087
"""OpenSSL's NID_ED25519."""

_NAMES = ("libcrypto.so.3", "libcrypto.so.1.1", "libcrypto.so")


class KeyFault(Exception):
    """No key can be made or used on this machine. The message says why and how to mend it."""


def new_private_key() -> bytes:
    """Return a new private key: 32 random bytes."""
    return os.urandom(KEY_BYTES)


def public_key(private_key: bytes) -> bytes:
    """Return the public key that belongs to a private one.

    :raises KeyFault: OpenSSL cannot be used.
    """
    library = _library()
    key = _load(library, private_key)
    try:
        found, length = ctypes.create_string_buffer(KEY_BYTES), ctypes.c_size_t(KEY_BYTES)
        if library.EVP_PKEY_get_raw_public_key(key, found, ctypes.byref(length)) != 1:
            raise KeyFault("OpenSSL does not tell the public key")
        return found.raw
    finally:
        library.EVP_PKEY_free(key)


def sign(private_key: bytes, message: bytes) -> bytes:
    """Return the signature of a message, 64 bytes.

    :raises KeyFault: OpenSSL cannot be used.
    """
    library = _library()
    key = _load(library, private_key)
    context = library.EVP_MD_CTX_new()
    try:
        found, length = ctypes.create_string_buffer(SIGNATURE_BYTES), ctypes.c_size_t(SIGNATURE_BYTES)
        begun = context and library.EVP_DigestSignInit(context, None, None, None, key) == 1
        if not begun or library.EVP_DigestSign(context, found, ctypes.byref(length), message, len(message)) != 1:
            raise KeyFault("OpenSSL cannot sign with Ed25519; in FIPS mode it may need version 3.2 or newer")
        return found.raw
    finally:
        library.EVP_MD_CTX_free(context)
        library.EVP_PKEY_free(key)


def _load(library: ctypes.CDLL, private_key: bytes) -> int:
    key: int | None = library.EVP_PKEY_new_raw_private_key(_ED25519, None, private_key, len(private_key))
    if not key:
        raise KeyFault("OpenSSL does not take an Ed25519 key; in FIPS mode it may need version 3.2 or newer")
    return key


@cache
def _library() -> ctypes.CDLL:
    for name in _NAMES:
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        for function, result, arguments in (
            ("EVP_PKEY_new_raw_private_key", pointer, [ctypes.c_int, pointer, ctypes.c_char_p, size]),
            ("EVP_PKEY_get_raw_public_key", ctypes.c_int, [pointer, pointer, pointer]),
            ("EVP_PKEY_free", None, [pointer]),
            ("EVP_MD_CTX_new", pointer, []),
            ("EVP_MD_CTX_free", None, [pointer]),
            ("EVP_DigestSignInit", ctypes.c_int, [pointer] * 5),
            ("EVP_DigestSign", ctypes.c_int, [pointer, pointer, pointer, ctypes.c_char_p, size]),
        ):
            call = getattr(library, function, None)
            if call is None:
                raise KeyFault(f"{name} is too old; OpenSSL 1.1.1 or newer is needed")
            call.restype, call.argtypes = result, arguments
        return library
    raise KeyFault(
        "OpenSSL's libcrypto is not installed; install libssl3 (Debian, Ubuntu) or openssl-libs (Fedora, RHEL)"
    )
