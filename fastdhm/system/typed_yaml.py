"""YAML files, read by the types that their values are to have.

YAML 1.1 guesses them from the spelling: ``lr: 1e-3`` would be text, ``compile: on`` true, ``1:30`` ninety, ``010``
eight.
"""

import codecs
import dataclasses
import types
import typing
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import yaml

from fastdhm.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

TRUE, FALSE = ("true", "yes", "on"), ("false", "no", "off")
# a type -> what a person calls its values, and how the help of a flag writes one
PLAIN = {
    int: ("a whole number", "N"),
    float: ("a number", "X"),
    bool: ("true or false", "BOOL"),
    str: ("text", "NAME"),
    types.NoneType: ("null", "null"),
}
T = TypeVar("T", bound="DataclassInstance")


class _Loader(yaml.SafeLoader):
    """Scalars are text but for null; a name that is given twice is an error."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own form
        first: [(tag, form) for tag, form in forms if tag.rpartition(":")[2] in ("null", "merge")]
        for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for name in (name for name, _ in node.value if isinstance(name, yaml.ScalarNode)):
            if name.value in seen and not name.tag.endswith(":merge"):
                raise yaml.constructor.ConstructorError(None, None, f"{name.value} is given twice", name.start_mark)
            seen.add(name.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """The names and values in ``path``: text, ``None``, lists and mappings of those.

    Raises:
        ValueError: it cannot be read, is not text, not YAML or holds anything else; says in which line.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        values = yaml.load(data.decode("utf-16" if wide else "utf-8-sig"), _Loader)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(f"{path} is not text in UTF-8: line {line} has the byte {data[error.start]:#x}") from error
    except yaml.MarkedYAMLError as error:
        at_name = error.context == "while scanning a simple key"  # the problem is met in the line after it
        mark = (error.context_mark if at_name else None) or error.problem_mark or error.context_mark
        raise UserError(f"{path} is not YAML: line {mark.line + 1 if mark else '?'}: {error.problem}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        holds = "is empty" if values is None else f"holds {_shown(values)}"
        raise UserError(f"{path} {holds}: it must hold lines such as `epochs: 3`")
    return values


def build(cls: type[T], values: Any, where: str) -> T:
    """An instance of a dataclass from plain values, from YAML or Python's own; what is not given is at its default.

    Raises:
        ValueError: begins with ``where``; names the value, and what it must be or the name that it may have been.
    """
    if not isinstance(values, dict):
        raise UserError(f"{where}: {_shown(values)} must be names with values")
    hints = _hints(cls)
    try:
        for name in values:
            if name not in hints:
                raise no_such_setting(str(name), hints)
        fields = dataclasses.fields(cls)
        missing = [f.name for f in fields if f.name not in values and _needed(f)]
        if missing:
            raise UserError(f"{missing[0]} is missing")
        return cls(**{name: typed(hints[name], value, name) for name, value in values.items()})
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error


def no_such_setting(name: str, known: Iterable[str], meant: str | None = None) -> UserError:
    """The error for a name that is no setting; says which is ``meant``, or the nearest."""
    return UserError(f"there is no setting {name!r}{did_you_mean(meant or name, known)}")


def _needed(field: dataclasses.Field) -> bool:
    return field.default is field.default_factory is dataclasses.MISSING


@cache
def _hints(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def typed(hint: Any, value: Any, name: str) -> Any:
    """``value``, from YAML or Python's own, as ``hint`` has it; ``ValueError`` naming ``name`` if it is not such."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return build(hint, value, name)
    try:
        return _typed(hint, value, name)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{name} is {_shown(value)}: must be {describe(hint)}") from error


def _typed(hint: Any, value: Any, name: str) -> Any:
    kind, parts = typing.get_origin(hint), typing.get_args(hint)
    if kind in (typing.Union, types.UnionType):
        return _one_of(parts, value, name)
    if kind is Literal:
        return _choice(parts, value)
    if kind is tuple:
        return _tuple(parts, value, name)
    if kind is dict and isinstance(value, dict):
        return {_typed(parts[0], key, name): typed(parts[1], part, f"{name} {key}") for key, part in value.items()}
    if kind is None and (hint is Any or value is None is hint or hint is types.NoneType is type(value)):
        return value
    return _scalar(hint, value)


def _one_of(hints: Iterable[Any], value: Any, name: str) -> Any:
    hints = tuple(hints)
    if value is None and types.NoneType in hints:
        return None
    for hint in (hint for hint in hints if hint is not types.NoneType):
        try:
            return _typed(hint, value, name)
        except (TypeError, ValueError, OverflowError):
            continue
    raise ValueError


def _choice(choices: tuple[Any, ...], value: Any) -> Any:
    text = str(value).lower()
    for words, word in ((TRUE, "on"), (FALSE, "off")):
        if text in words and text not in choices and word in choices:
            return word
    return choices[choices.index(text if text in choices else value)]


def _tuple(hints: tuple[Any, ...], value: Any, name: str) -> tuple[Any, ...]:
    """Also of text, as a flag has it: ``B1,B2``."""
    if isinstance(value, str):
        value = [part.strip() for part in value.removeprefix("[").removesuffix("]").split(",") if part.strip()]
    elif value is None or isinstance(value, dict):
        raise TypeError
    elif not isinstance(value, (list, tuple)):
        value = [value]
    if hints[-1] is Ellipsis:
        hints = hints[:1] * len(value)
    return tuple(typed(hint, part, name) for hint, part in zip(hints, value, strict=True))


def _scalar(hint: Any, value: Any) -> Any:
    if value is None or isinstance(value, (list, tuple, dict)):
        raise TypeError
    if hint is bool:
        text = str(value).lower()
        if text not in TRUE + FALSE:
            raise ValueError
        return text in TRUE
    if hint is str:
        return str(value)
    if isinstance(value, bool) or hint not in (int, float):
        raise TypeError
    if isinstance(value, str) and value.lstrip("+-").lower() in (".inf", ".nan"):
        value = value.replace(".", "", 1)
    if hint is float:
        return float(value)
    try:
        return int(value) if isinstance(value, (int, str)) else _whole(value)
    except ValueError:
        return _whole(float(value))  # 1e3


def _whole(value: float) -> int:
    if value != int(value):
        raise ValueError
    return int(value)


def describe(hint: Any) -> str:
    """What values of a type look like, for a person."""
    kind, parts = typing.get_origin(hint), typing.get_args(hint)
    if kind in (typing.Union, types.UnionType):
        return " or ".join(describe(part) for part in parts)
    if kind is Literal:
        return f"one of {', '.join(map(str, parts))}"
    if kind is tuple:
        inner = describe(parts[0])
        return f"a list, each of it {inner}" if parts[-1] is Ellipsis else f"a list of {len(parts)}, each {inner}"
    return f"names, each with {describe(parts[1])}" if kind is dict else PLAIN.get(hint, (str(hint),))[0]


def shape(hint: Any) -> str:
    """How values of a type are written behind a flag: ``N`` for a whole number, ``NAME,...`` for names."""
    kind, parts = typing.get_origin(hint), [part for part in typing.get_args(hint) if part is not types.NoneType]
    if kind in (typing.Union, types.UnionType):
        return "|".join(shape(part) for part in parts)
    if kind is tuple:
        return ",".join("..." if part is Ellipsis else shape(part) for part in parts)
    if kind is dict:
        return "{NAME:" + shape(parts[1]) + "}"
    return "NAME" if kind is Literal else PLAIN[hint][1]


def _shown(value: Any) -> str:
    text = "null" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
