"""What a command line names as module:name."""

import importlib
import sys
from pathlib import Path
from typing import Any

from .errors import UserError, reason


def import_named(name: str) -> Any:
    """`module:attribute`, imported from the current directory; UserError where that fails.

    It runs the module, so only what the user gives may come here, never what a file says.
    """
    module, _, attribute = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever the user's module raises
        raise UserError(f"cannot import {name!r} ({reason(error)}); {module}.py belongs in the current "
                        "directory") from None
