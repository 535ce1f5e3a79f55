"""How a script ends: with its result, or with one line and an exit code."""

import contextlib
import os
import sys
from pathlib import Path

from . import distributed, logs
from .errors import UserError
from .signals import Stopped, ending_on_sigterm


@contextlib.contextmanager
def reported(alone: bool = False):
    """Around a whole script: bad input and signals end it with one line and the exit code that belongs to them.

    alone: it cannot share its work with others, which torchrun would start.
    """
    try:
        if alone and distributed.started_by_torchrun():
            raise UserError("torchrun: this script runs in one process alone; start it with python3")
        with (open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(logs.Output(sys.stdout or nowhere)),
              ending_on_sigterm()):
            yield
    except (UserError, distributed.ProcessLost) as error:
        print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except Stopped as stopped:
        if distributed.rank() == 0:
            print(f"{Path(sys.argv[0]).name}: {stopped}", file=sys.stderr)
        sys.exit(stopped.exit_code)
    except KeyboardInterrupt:  # where no `Interrupts` notes it
        print(f"{Path(sys.argv[0]).name}: stopped by Ctrl-C", file=sys.stderr)
        sys.exit(130)
