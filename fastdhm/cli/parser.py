"""Flags, help texts and one-line messages; every command's file builds its flags with this.

A help text is one sentence that fits a line. What more there is to say about a value of a run stands in its docstring
in ``fastdhm.config``, below the sentence.
"""

import argparse
import contextlib
import io
import re
import types
import typing
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import jsonargparse

from fastdhm.config import TOPICS
from fastdhm.errors import UserError
from fastdhm.system.paths import expanded
from fastdhm.system.streams import answer
from fastdhm.system.typed_yaml import describe, no_such_setting, read_yaml, shape, typed

HELP = ("-h", "--help")
ASKING = (*HELP, "--print_config", "--print-config")  # flags that ask what a run would be, and start none
NOT_VALUES = ("config", "help", "print_config")
# what other programs call a value -> its name here
ELSEWHERE = {
    "learning_rate": "lr", "wd": "weight_decay", "model": "arch",
    "auto_augment": "augment", "aa": "augment", "reprob": "random_erase", "ra_reps": "repeats",
    "opt": "optimizer", "sched": "schedule", "smoothing": "label_smoothing", "model_ema": "ema",
    "model_ema_decay": "ema", "pretrained": "weights", "initial_checkpoint": "weights",
}  # fmt: skip

jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)


class _Help(argparse.HelpFormatter):
    """One line for a flag, where it fits: its first sentence and its default. Examples stay as they are written."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=26)

    def _get_help_string(self, action: argparse.Action) -> str:
        sentence, default = (action.help or "").partition("\n")[0], default_of(action)
        return f"{sentence} (default: {default})".replace("%", "%%") if default else sentence

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


class Parser(jsonargparse.ArgumentParser):
    """Flags spelt with dashes (``--batch-size``), underscores accepted; a mistake is one clear line."""

    def __init__(self, command: str, description: str, **more: Any):
        super().__init__(
            prog=f"fastdhm {command}", description=description, formatter_class=_Help, allow_abbrev=False, **more
        )
        self._positionals.title, self._optionals.title = "Arguments", "Options"

    def flag(self, name: str, help: str, kind: Any = str, default: Any = None, **more: Any) -> None:
        """A flag with a value of type ``kind``; without a ``default`` it is ``None`` where it is not given."""
        self.add_argument(name, help=help, type=(kind | None) if default is None else kind, default=default, **more)

    def switch(self, name: str, help: str) -> None:
        """A flag without a value."""
        self.add_argument(name, help=help, action="store_true")

    def add_run_arguments(self, skip: Iterable[str] = ()) -> None:
        """``--config``, and a flag for every value of a run but those in ``skip``, under the heading of its topic."""
        self.add_argument("--config", action="config", metavar="FILE", help="YAML file with any of the values below.")
        for topic in TOPICS:
            self.add_class_arguments(topic, skip=set(skip))

    def error(self, message: str, ex: Exception | None = None) -> typing.NoReturn:
        told = self._plain(" ".join(str(message).split()))
        raise UserError(f"{told}{'' if told.endswith('?') else ';'} `{self.prog} --help` lists the flags")

    def _plain(self, message: str) -> str:
        """The parser's message in the user's terms: flags and values, not Python types."""
        key = re.search(r'key "(\w+)":', message)
        value = re.search(r"Given value: (.+)$", message) or re.search(r"Got value: (.+?)( -|$)", message)
        if key and value:
            hint = next(_hint(action) for action in self._actions if action.dest == key[1])
            return f"{key[1]} is {value[1]}: must be {describe(hint)}"
        needed = re.match(r"the following arguments are required: (.+)", message)
        if needed:
            flags = {action.dest: (action.option_strings or [action.dest.upper()])[0] for action in self._actions}
            return f"give {' and '.join(flags.get(name, name) for name in needed[1].split(', '))}"
        word = re.match(r"[Uu]nrecognized arguments: ([^\s=]+)", message)
        meant = self._meant(word[1]) if word else None
        return f"{message}; did you mean {meant}?" if meant else message

    def _meant(self, word: str) -> str | None:
        """The flag that a word which is none may stand for."""
        flags = self._option_string_actions
        if not word.startswith("--"):
            return f"--resume {word}" if "--resume" in flags and _is_run(expanded(word)) else None
        meant = f"--{ELSEWHERE.get(word.removeprefix('--').replace('-', '_'), '')}".replace("_", "-")
        near = [meant] if meant in flags else get_close_matches(word.replace("_", "-"), flags, n=1)
        return near[0].replace("_", "-") if near else None

    def parse(self, argv: list[str]) -> dict[str, Any]:
        """The value of every flag: the one in ``argv``, or the default."""
        return self._parsed(argv, defaults=True)

    def given(self, argv: list[str]) -> dict[str, Any]:
        """The values given in ``argv``. A flag beats the files of ``--config``, wherever they stand."""
        flags, files = _apart(argv)
        values = {name: value for file in files for name, value in self._of_file(expanded(file)).items()}
        return values | self._parsed(flags, defaults=False)

    def show(self, asks: list[str], values: dict[str, Any]) -> None:
        """Answer ``--help`` or ``--print-config`` with ``values`` as the defaults, and end the program."""
        flags = {action.dest for action in self._actions}
        self.set_defaults({name: value for name, value in values.items() if name in flags})
        self._parsed(asks, defaults=True)

    def _of_file(self, path: Path) -> dict[str, Any]:
        """The values in a YAML file under the names of the flags."""
        actions = {a.dest: a for a in self._actions if a.dest not in NOT_VALUES}
        if not path.exists():
            raise UserError(f"--config {path}: there is no such file")
        values = {str(name).replace("-", "_"): value for name, value in read_yaml(path).items()}
        try:
            for name in values:
                if name not in actions:
                    raise no_such_setting(name, actions, ELSEWHERE.get(name))
            return {name: typed(_hint(actions[name]), value, name) for name, value in values.items()}
        except UserError as error:
            raise UserError(f"--config {path}: {error}") from error

    def _parsed(self, argv: list[str], defaults: bool) -> dict[str, Any]:
        self._finish_flags()
        said = io.StringIO()  # help texts and --print_config
        try:
            with contextlib.redirect_stdout(said):
                # jsonargparse knows this flag without a value by its own spelling only
                argv = [re.sub("^--print-config", "--print_config", argument) for argument in self._bracketed(argv)]
                values = self.parse_args(argv, defaults=defaults).as_dict()
        except SystemExit:
            # " \b" is how jsonargparse writes --print_config[=flags]
            answer(said.getvalue().replace(" \b", "").rstrip("\n"))
            raise
        return {name: value for name, value in values.items() if name not in NOT_VALUES}

    def _bracketed(self, argv: list[str]) -> Iterator[str]:
        """``--branches B1,B2`` as ``--branches [B1,B2]``, for a flag that takes a list; ``--image-size 64,32``, too."""
        before = ""
        for argument in argv:
            flag, equals, value = argument.partition("=") if argument.startswith("--") else (before, "", argument)
            plain = value and (value[0] not in "[(-" or re.match(r"-[\d.]", value)) and value not in ("null", "None")
            yield f"{flag * bool(equals)}{equals}[{value}]" if plain and self._is_list(flag, value) else argument
            before = argument

    def _is_list(self, flag: str, value: str) -> bool:
        hint = getattr(self._option_string_actions.get(flag), "_typehint", None)
        union = typing.get_origin(hint) in (typing.Union, types.UnionType)
        kinds = set(typing.get_args(hint) if union else [hint]) - {types.NoneType}
        origins = {typing.get_origin(kind) for kind in kinds}
        return origins == {tuple} or (tuple in origins and "," in value)

    def _finish_flags(self) -> None:
        """Show ``--batch-size N`` for ``--batch_size BATCH_SIZE`` in the help, and accept both spellings."""
        for action in self._actions:
            if action.dest == "help":
                action.help = "Show this help."
            if action.dest == "print_config":
                action.help, action.metavar = "Show the values of this run, as YAML.", ""
            if action.option_strings and "_" in action.option_strings[0]:
                dashed = action.option_strings[0].replace("_", "-")
                action.option_strings = [dashed]
                self._option_string_actions[dashed] = action
            if action.option_strings and hasattr(action, "_typehint") and (action.metavar or "{")[0] in "{[":
                action.metavar = "FOLDER" if action.dest.endswith("_dir") else shape(action._typehint)


def asked(argv: list[str]) -> tuple[list[str], list[str]]:
    """The flags in ``argv`` that ask what a run would be, ``--help`` or ``--print-config``, and all the others."""
    asks = [word for word in argv if word.partition("=")[0] in ASKING]
    return asks, [word for word in argv if word not in asks]


def default_of(action: argparse.Action) -> str:
    """The default of a flag as the help shows it; for null what the help text says that null means."""
    if action.default is None:
        means = re.search(r"\sNull: (.+?)\.(\s|$)", action.help or "", re.DOTALL)
        return " ".join(means[1].split()) if means else ""
    takes_one = action.option_strings and action.nargs != 0 and action.default != argparse.SUPPRESS
    return _spelt(action.default) if takes_one else ""


def _is_run(folder: Path) -> bool:
    from fastdhm.system.endings import CONFIGS

    return any((folder / name).is_file() for name in CONFIGS)


def _hint(action: argparse.Action) -> Any:
    return getattr(action, "_typehint", bool if action.nargs == 0 else str | None)


def _spelt(value: Any) -> str:
    """A value as it would stand behind its flag."""
    if isinstance(value, (list, tuple)):
        return ",".join(map(_spelt, value)) or "[]"
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def _apart(argv: list[str]) -> tuple[list[str], list[str]]:
    """``argv`` without ``--config FILE``, and the files."""
    flags, files, words = [], [], iter(argv)
    for word in words:
        name, equals, value = word.partition("=")
        if name != "--config":
            flags.append(word)
            continue
        file = value if equals else next(words, "")
        if not file:
            raise UserError("--config is given without a file: name a YAML file of values")
        files.append(file)
    return flags, files
