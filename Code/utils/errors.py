"""The one exception that means "the user can put this right"."""

import contextlib
import sys
from pathlib import Path


class UserError(Exception):
    """Bad input. The message names the flag or file and says what to do; scripts print it and exit with 2."""


def reason(error: Exception) -> str:
    """The first line of what an exception says, at most 200 characters, or its name where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


@contextlib.contextmanager
def in_one_line():
    """Around a script's work: a UserError becomes one line on stderr and exit code 2."""
    try:
        yield
    except UserError as error:
        print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
        sys.exit(2)
