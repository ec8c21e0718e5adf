"""Flags, help texts and one-line messages; every command's file builds its flags with this."""

import argparse
import contextlib
import io
import re
import types
import typing
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path

import jsonargparse

from fastdhm.errors import UserError
from fastdhm.system.paths import expanded
from fastdhm.system.streams import answer
from fastdhm.system.typed_yaml import no_such_setting, read_yaml, typed

# how the parser names types -> how a person does
PLAIN_TYPES = {
    "<class 'float'>": "a number",
    "<class 'int'>": "a whole number",
    "<class 'NoneType'>": "null",
    "<class 'str'>": "text",
    "<class 'bool'>": "true or false",
    "tuple[float, float]": "[NUMBER,NUMBER]",
    "tuple[int, int]": "[HEIGHT,WIDTH]",  # the image size alone is such a pair
    "tuple[str, ...]": "[NAME,...]",
    "dict[str, float]": "{NAME: NUMBER}",
}
LITERAL = re.compile(r"typing\.Literal\[(.+?)\]")
PRINTING = ("--print_config", "--print-config")
NOT_VALUES = ("config", "help", "print_config")

jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)


class Parser(jsonargparse.ArgumentParser):
    """Flags spelt with dashes (``--batch-size``), underscores accepted; a mistake is one clear line."""

    def __init__(self, command: str, description: str):
        super().__init__(
            prog=f"fastdhm {command}",
            description=description,
            formatter_class=argparse.HelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str, ex: Exception | None = None) -> None:
        told = self._plain(" ".join(str(message).split()))
        raise UserError(f"{told}{'' if told.endswith('?') else ';'} `{self.prog} --help` lists the flags")

    def _plain(self, message: str) -> str:
        """The parser's message in the user's terms: flags and values, not Python types."""
        wrong = re.search(r'Parser key "(\w+)":.*?Expected a (.+?)\. Got value: (.+?)( -|$)', message)
        union = re.search(
            r'key "(\w+)": Does not validate .*?Subtypes: \[(.+)\] Errors: .* Given value: (.+)$', message
        )
        if wrong or union:
            key, expected, value = (union or wrong).groups()[:3]
            expected = LITERAL.sub(lambda found: f"one of {found[1].replace(chr(39), '')}", expected)
            for python, plain in PLAIN_TYPES.items():
                expected = expected.replace(python, plain)
            return f"{key} is {value}: must be {expected.replace(', ', ' or ') if union else expected}"
        needed = re.match(r"the following arguments are required: (.+)", message)
        if needed:
            flags = {action.dest: (action.option_strings or [action.dest.upper()])[0] for action in self._actions}
            return f"give {' and '.join(flags.get(name, name) for name in needed[1].split(', '))}"
        flag = re.match(r"unrecognized arguments: (--[\w-]+)", message)
        near = flag and get_close_matches(flag[1].replace("_", "-"), self._option_string_actions, n=1)
        return f"{message}; did you mean {near[0]}?" if near else message

    def parse(self, argv: list[str], defaults: bool = True) -> dict:
        """The values given in ``argv``, with ``defaults`` those of the flags not given as well.

        A flag goes before the files of ``--config``, wherever they stand.
        """
        self._spell_with_dashes()
        flags, files = _apart(argv) if "--config" in self._option_string_actions else (argv, [])
        if not files:
            return self._parsed(argv, defaults)
        prints = [word for word in flags if word.startswith(PRINTING)]
        values = {name: value for file in files for name, value in self._of_file(expanded(file)).items()}
        values |= self._parsed([word for word in flags if word not in prints], defaults=False)
        if defaults or prints:
            usual = self.get_defaults().as_dict()
            values = {name: value for name, value in usual.items() if name not in NOT_VALUES} | values
        if prints:
            self.set_defaults(values)
            self._parsed(prints, defaults=True)  # ends the program
        return values

    def _of_file(self, path: Path) -> dict:
        """The values in a YAML file under the names of the flags."""
        actions = {a.dest: a for a in self._actions if a.dest not in NOT_VALUES}
        values = {str(name).replace("-", "_"): value for name, value in read_yaml(path).items()}
        try:
            for name in values:
                if name not in actions:
                    raise no_such_setting(name, actions)
            return {name: typed(_hint(actions[name]), value, name) for name, value in values.items()}
        except UserError as error:
            raise UserError(f"--config {path}: {error}") from error

    def _parsed(self, argv: list[str], defaults: bool) -> dict:
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
        """``--branches B1,B2`` as ``--branches [B1,B2]``, for the flags that take a list and nothing else."""
        before = ""
        for argument in argv:
            flag, equals, value = argument.partition("=") if argument.startswith("--") else (before, "", argument)
            plain = value and (value[0] not in "[(-" or re.match(r"-[\d.]", value)) and value not in ("null", "None")
            yield f"{flag * bool(equals)}{equals}[{value}]" if plain and self._is_list(flag) else argument
            before = argument

    def _is_list(self, flag: str) -> bool:
        hint = getattr(self._option_string_actions.get(flag), "_typehint", None)
        union = typing.get_origin(hint) in (typing.Union, types.UnionType)
        kinds = set(typing.get_args(hint) if union else [hint]) - {types.NoneType}
        return {typing.get_origin(kind) for kind in kinds} == {tuple}

    def _spell_with_dashes(self) -> None:
        """Show ``--batch-size`` for ``--batch_size`` in the help, and accept both."""
        for action in self._actions:
            if action.option_strings and "_" in action.option_strings[0]:
                dashed = action.option_strings[0].replace("_", "-")
                action.option_strings[:] = [dashed]
                self._option_string_actions[dashed] = action


def _hint(action: argparse.Action) -> typing.Any:
    return getattr(action, "_typehint", bool if action.nargs == 0 else str | None)


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
