"""Text that others have written, made fit for a log or a terminal."""

from __future__ import annotations

import re
from typing import Any

# Control characters, what changes the direction of text, separators of lines and paragraphs, halves of characters.
_HIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str, *, keep: str = "") -> str:
    r"""Return the text with everything spelled out that is not shown but does something, as ``\x1b`` or ``\u202e``.

    :param keep: characters to leave as they are, such as newlines where there may be several lines.
    """
    return _HIDDEN.sub(lambda found: found[0] if found[0] in keep else _spelled(found[0]), text)


def visible_all(value: Any, *, keep: str = "") -> Any:
    """Do the same for all texts in lists, tuples and dictionaries."""
    match value:
        case str():
            return visible(value, keep=keep)
        case list() | tuple():
            return [visible_all(part, keep=keep) for part in value]
        case dict():
            return {visible_all(key, keep=keep): visible_all(part, keep=keep) for key, part in value.items()}
    return value


def _spelled(character: str) -> str:
    if character in "\n\r\t":
        return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}[character]
    code = ord(character)
    return f"\\x{code:02x}" if code <= 0xFF else f"\\u{code:04x}"  # noqa: PLR2004
