"""Reads the agent's settings model, with the text below each field, into sections for a manual page and a file."""

from __future__ import annotations

import ast
import inspect
import itertools
import json
import textwrap
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from edgepack.faults import BuildError

_NAMES: dict[Any, str] = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    Path: "path",
    dict: "table",
    types.NoneType: "none",
}


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting.

    :param default: as TOML, or in words where it depends on the machine; empty: none.
    """

    name: str
    table: str
    type: str
    default: str
    doc: str
    required: bool
    is_toml: bool
    """The default can be written into a file."""
    nested: bool = False
    """It is in a table of tables, whose names are the administrator's."""

    def variable(self, prefix: str) -> str:
        """Return the environment variable that sets it, empty if none does."""
        if self.nested:
            return ""
        return prefix + "__".join([*filter(None, self.table.split(".")), self.name]).upper()


@dataclass(frozen=True, slots=True)
class Section:
    """A table of the file; the first one is the file's top.

    :param table: its dotted name, empty for the top.
    """

    table: str
    title: str
    doc: str
    settings: tuple[Setting, ...]
    optional: bool = False
    """It says something by being there: it is commented out in a file of defaults."""


def read(model: type[BaseModel], defaults: dict[str, str]) -> list[Section]:
    """Describe a settings model.

    :param defaults: words for defaults that depend on the machine, by dotted name.
    :raises BuildError: a field has a default that cannot be told.
    """
    return list(_sections(model, "", defaults, nested=False, optional=False))


def _sections(
    model: type[BaseModel], table: str, words: dict[str, str], *, nested: bool, optional: bool
) -> typing.Iterator[Section]:
    docs = _texts(model)
    settings, below = [], []
    for name, info in model.model_fields.items():
        dotted = f"{table}.{name}" if table else name
        inner, many = _inner_model(info.annotation)
        if inner is not None:
            path = f"{dotted}.NAME" if many else dotted
            below.append((path, inner, nested or many, optional or many or info.default is None))
            continue
        default, is_toml = _default(info, dotted, words)
        settings.append(
            Setting(
                name=name,
                table=table,
                type=_type(info.annotation),
                default=default,
                doc=_one_line(docs.get(name, "")),
                required=info.is_required(),
                is_toml=is_toml,
                nested=nested,
            )
        )
    title = f"[{table}]" if table else "Settings at the top"
    yield Section(table, title, _one_line(inspect.getdoc(model) or ""), tuple(settings), optional)
    for path, inner, deeper, may_be_missing in below:
        yield from _sections(inner, path, words, nested=deeper, optional=may_be_missing)


def _texts(model: type[BaseModel]) -> dict[str, str]:
    """Return the string that follows each field in the source, also in the classes that this one is made from."""
    texts: dict[str, str] = {}
    for cls in reversed(model.__mro__):
        if not issubclass(cls, BaseModel) or cls.__module__.startswith("pydantic"):
            continue
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
        body = next(node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)).body
        for field, text in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                match text:
                    case ast.Expr(value=ast.Constant(value=str() as words)):
                        texts[field.target.id] = words
    return texts


def _inner_model(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """Return the model behind a table, and whether it is a table of such tables."""
    if get_origin(annotation) is typing.Annotated:
        return _inner_model(get_args(annotation)[0])
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, False
    if get_origin(annotation) is dict:
        inner, _ = _inner_model(get_args(annotation)[1])
        return inner, inner is not None
    if get_origin(annotation) in (types.UnionType, typing.Union):
        found = [_inner_model(part) for part in get_args(annotation)]
        return next((item for item in found if item[0] is not None), (None, False))
    return None, False


def _type(annotation: Any) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is typing.Annotated:
        return _type(parts[0])
    if origin is Literal:
        return " | ".join(json.dumps(part) for part in parts)
    if origin in (types.UnionType, typing.Union):
        names = [_type(part) for part in parts if part is not types.NoneType]
        return " or ".join(dict.fromkeys(names))
    if origin in (list, tuple, set, frozenset):
        return f"list of {_type(parts[0])}" if parts else "list"
    if origin is dict:
        return "table"
    if hasattr(annotation, "__value__"):
        return _type(annotation.__value__)
    return _NAMES.get(annotation, "text")


def _default(info: FieldInfo, dotted: str, words: dict[str, str]) -> tuple[str, bool]:
    if dotted in words:
        return words[dotted], False
    if info.is_required():
        return "", False
    if info.default is PydanticUndefined:
        raise BuildError(f"{dotted}: its default is made when the agent starts; say it in words, in documents.py")
    if info.default is None:
        return "", False
    return _toml(info.default), True


def _toml(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return f"{value:g}" if isinstance(value, float) else str(value)
        case dict():
            return (
                "{ " + ", ".join(f"{json.dumps(key)} = {_toml(item)}" for key, item in value.items()) + " }"
                if value
                else "{}"
            )
        case list() | tuple() | set() | frozenset():
            return "[" + ", ".join(_toml(item) for item in value) + "]"
        case _:
            return json.dumps(str(value), ensure_ascii=False)


def _one_line(text: str) -> str:
    """Return it without line breaks and without the marks of code."""
    return " ".join(text.replace("``", "").split())
