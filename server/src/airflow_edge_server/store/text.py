"""Texts as databases can keep them."""

from __future__ import annotations


def clean(text: str) -> str:
    """Return the text without NUL, which not every database can store."""
    return text.replace("\x00", "\N{REPLACEMENT CHARACTER}")
