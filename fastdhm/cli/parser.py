"""Flags, help texts and one-line messages; every command's file builds its flags with this."""

import argparse
import contextlib
import io
import re
import types
import typing
from collections.abc import Iterator
from difflib import get_close_matches

import jsonargparse

from fastdhm.errors import UserError
from fastdhm.streams import answer

# how the parser names types -> how a person does
PLAIN_TYPES = {
    "<class 'float'>": "a number",
    "<class 'int'>": "a whole number",
    "<class 'NoneType'>": "null",
    "<class 'str'>": "text",
    "<class 'bool'>": "true or false",
    "tuple[int, int]": "[HEIGHT,WIDTH]",  # the image size alone is such a pair
    "tuple[str, ...]": "[NAME,...]",
    "dict[str, float]": "{NAME: NUMBER}",
    "typing.Literal": "one of ",
}

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
        raise UserError(f"{self._plain(' '.join(str(message).split()))}; `{self.prog} --help` lists the flags")

    def _plain(self, message: str) -> str:
        """The parser's message in the user's terms: flags and values, not Python types."""
        wrong = re.search(r'Parser key "(\w+)":.*?Expected a (.+?)\. Got value: (.+?)( -|$)', message)
        union = re.search(
            r'key "(\w+)": Does not validate .*?Subtypes: \[(.+)\] Errors: .* Given value: (.+)$', message
        )
        if wrong or union:
            key, expected, value = (union or wrong).groups()[:3]
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
        """The values given in ``argv``, with ``defaults`` those of the flags not given as well."""
        self._spell_with_dashes()
        said = io.StringIO()  # help texts and --print_config
        try:
            with contextlib.redirect_stdout(said):
                values = self.parse_args(list(self._bracketed(argv)), defaults=defaults).as_dict()
        except UnicodeDecodeError as error:
            raise UserError(f"--config is not a text file: {error}") from error
        except SystemExit:
            answer(
                said.getvalue().replace(" \b", "").rstrip("\n")
            )  # jsonargparse's way to write --print_config[=flags]
            raise
        return {name: value for name, value in values.items() if name not in ("config", "print_config")}

    def _bracketed(self, argv: list[str]) -> Iterator[str]:
        """``--branches B1,B2`` as ``--branches [B1,B2]``, for the flags that take a list and nothing else."""
        before = ""
        for argument in argv:
            flag, equals, value = argument.partition("=") if argument.startswith("--") else (before, "", argument)
            plain = value and value[0] not in "[(-" and value not in ("null", "None")
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
