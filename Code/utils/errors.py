"""The one exception that means "the user can put this right"."""

import contextlib
import sys
from pathlib import Path


class UserError(Exception):
    """Bad input. The message names the flag or file and says what to do; scripts print it and exit with 2."""


@contextlib.contextmanager
def in_one_line():
    """Around a script's work: a UserError becomes one line on stderr and exit code 2."""
    try:
        yield
    except UserError as error:
        print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
        sys.exit(2)
