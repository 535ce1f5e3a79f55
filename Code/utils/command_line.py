"""How a command line is read and explained: the parser, its --help, and what the value of a flag may be."""

import argparse
import difflib
import os
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from .system.errors import UserError


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are UserErrors, and name the flag that an unknown one may stand for."""

    def parse_known_args(self, args=None, namespace=None):
        for word in sys.argv[1:] if args is None else args:
            if word.startswith("--") and word.endswith("=--"):  # of which argparse makes an empty list
                self.error(f"{word}: no value; give one")
        return super().parse_known_args(args, namespace)

    def parse_args(self, args=None, namespace=None):
        options, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flags = [flag for action in self._actions if action.help != argparse.SUPPRESS
                     for flag in action.option_strings]
            odd = next((word.partition("=")[0] for word in unknown if word.startswith("-")), "")
            self.error(f"unrecognized arguments: {' '.join(unknown)}{suggestion(odd, flags)}")
        return options

    def error(self, message: str):
        """Raises UserError, of which `reported` makes one line and exit code 2."""
        raise UserError(message) from None


class Switch(argparse.Action):
    """--name and, as the published scripts spell it, --no_name; --no-name, too."""

    def __init__(self, option_strings, dest, default=False, help=None):
        name = option_strings[0].removeprefix("--")
        super().__init__([f"--{name}", f"--no_{name}", f"--no-{name}"], dest, nargs=0, default=default, help=help)

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, option_string == self.option_strings[0])


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Help with a short usage, defaults where there are any, and the commands of a docstring as they stand."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=28)

    def add_usage(self, usage, actions, groups, prefix=None):
        words = ["%(prog)s"]
        for action in filter(lambda action: action.required, actions):
            metavar = self._get_default_metavar_for_optional(action) if action.option_strings else action.dest
            words += [*action.option_strings[:1], self._format_args(action, metavar)]
        super().add_usage(" ".join([*words, "[flags]"]), actions, groups, prefix)

    def _get_help_string(self, action):
        default = action.default
        if default is None or default is False or default in ("", argparse.SUPPRESS):
            return action.help
        return f"{action.help.partition(' (default: ')[0]} (default: {in_words(default).replace('%', '%%')})"

    def _get_default_metavar_for_optional(self, action):
        return getattr(action.type, "metavar", super()._get_default_metavar_for_optional(action))

    def _format_action_invocation(self, action):
        if isinstance(action, Switch):
            return ", ".join(action.option_strings[:2])
        return super()._format_action_invocation(action)


def new_parser(description: str) -> Parser:
    """A parser without flags, but for --help."""
    parser = Parser(description=description, formatter_class=HelpFormatter, allow_abbrev=False, add_help=False)
    parser.add_argument("-h", "--help", action="help", help=argparse.SUPPRESS)
    return parser


def switch(flag: Callable, name: str, default: bool | None, help: str):
    """Adds --name and what turns it off."""
    flag(f"--{name}", action=Switch, default=default, help=help)


def as_words(parser: Parser, keywords: dict) -> list[str]:
    """The command line that keyword arguments stand for: ipc=10, aug=True, zca=False -> --ipc=10 --aug --no_zca.

    None is no flag. UserError for a keyword that is no flag of the parser, and for a switch that is not True or False.
    """
    actions = {action.dest: action for action in parser._actions if action.option_strings and action.dest != "help"}
    words = []
    for name, value in keywords.items():
        if name not in actions:
            parser.error(f"unknown keyword {name}{suggestion(name, actions)}")
        action, flag = actions[name], actions[name].option_strings[0]
        if value is None:
            continue
        if action.nargs == 0 and not isinstance(value, bool | np.bool_):
            parser.error(f"{name}={value!r}: neither True nor False")
        if action.nargs == 0:
            words += [flag] * bool(value) or action.option_strings[1:2]  # a flag that nothing turns off is off
        elif action.nargs == "+" and isinstance(value, list | tuple):
            words += [flag, *map(str, value)]
        else:
            words.append(f"{flag}={value}")
    return words


def in_words(value) -> str:
    """The value of an option as a person would write it."""
    if isinstance(value, list):
        return " ".join(map(in_words, value))
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else "unset" if value is None else str(value)


# What a value may be


def folded(name: str) -> str:
    """A name without its case, hyphens, underscores and spaces."""
    return re.sub(r"[-_\s]", "", name).lower()


def suggestion(text: str, known: Iterable[str]) -> str:
    """The end of a message: which of the known names `text` may stand for; nothing where it resembles none."""
    names = {folded(name): name for name in known}
    close = difflib.get_close_matches(folded(text), names, 1, cutoff=0.7)
    return f"; did you mean {names[close[0]]}?" if close else ""


def accepted_by(check: Callable[[str], object], known: Iterable[str] = (), also: dict[str, str] | None = None):
    """An argparse type: text that `check` takes without a UserError or ValueError.

    known: names of which case, hyphens and underscores do not matter; the result is the name. also: other spellings.
    """
    names = {folded(name): name for name in known} | (also or {})

    def accept(text: str) -> str:
        name = text if text in known else names.get(folded(text), text)
        try:
            check(name)
        except (UserError, ValueError) as error:
            raise argparse.ArgumentTypeError(f"{error}{suggestion(text, known)}") from None
        return name

    accept.metavar = "NAME"
    return accept


def _at_most(high: float) -> str:
    return "" if high == float("inf") else f" and at most {high:.0f}"


def whole_number(low: int, high: float = float("inf")):
    """An argparse type: whole numbers from `low` to `high`."""
    def check(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {low}{_at_most(high)}")
        return value

    check.metavar = "N"
    return check


def finite_number(low: float, high: float = float("inf"), above: bool = False):
    """An argparse type: finite numbers from `low`, or above it, to `high`."""
    def check(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high or value == float("inf") or (above and value == low):
            least = f"{'above' if above else 'of at least'} {low:g}"
            raise argparse.ArgumentTypeError(f"{text!r} is not a number {least}{_at_most(high)}")
        return value

    check.metavar = "X"
    return check


def as_path(text: str) -> Path:
    """An argparse type: a path, with ~ for the home folder, which no shell puts in after an equals sign."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty; name a file or folder")
    return Path(os.path.expanduser(text))


as_path.metavar = "PATH"


def checkpoint_to_resume(text: str) -> str:
    """An argparse type: "auto" or a path."""
    return text if text == "auto" else str(as_path(text))
