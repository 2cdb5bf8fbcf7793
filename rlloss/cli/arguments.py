"""A command's options by argparse, of which a wrong one is one line like any other bad input."""

import argparse
import difflib
import re
from typing import NoReturn

from rlloss.errors import ConfigError

KINDS = {"int": "a whole number", "float": "a number"}


class Parser(argparse.ArgumentParser):
    """Raises ConfigError where argparse prints how the command is used and leaves."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{self._said(message)}; `{self.prog} --help` says more")

    def _said(self, message: str) -> str:
        """What argparse says, as key, value and what is wrong."""
        if found := re.fullmatch(r"unrecognized arguments: (\S+).*", message, re.DOTALL):
            close = difflib.get_close_matches(found[1], self._option_string_actions, 1, 0.75)
            if not found[1].startswith("-"):
                return f"{found[1]}: is one argument too many"
            return f"{found[1]}: unknown option" + (f"; did you mean {close[0]}?" if close else "")
        if found := re.fullmatch(r"the following arguments are required: (.*)", message):
            return f"{found[1]}: is missing"
        if found := re.fullmatch(r"argument (\S+): invalid choice: (.*) \(choose from (.*)\)", message):
            return f"{found[1]}={_bare(found[2])}: unknown; use one of {_bare(found[3])}"
        if found := re.fullmatch(r"argument (\S+): invalid (\w+) value: (.*)", message):
            return f"{found[1]}={_bare(found[3])}: must be {KINDS.get(found[2], 'another kind of value')}"
        return message.removeprefix("argument ")


def _bare(text: str) -> str:
    return text.replace("'", "")
