"""How a script ends: with its result, or with one line and an exit code."""

import contextlib
import os
import sys
from pathlib import Path

from . import distributed, logs
from .errors import UserError, in_one_line
from .signals import Stopped, ending_on_sigterm, resume_command


@contextlib.contextmanager
def reported(alone: bool = False):
    """Around a whole script: bad input and signals end it with one line and the exit code that belongs to them.

    alone: it cannot share its work with others, which torchrun would start. Neither stream ends it when it is lost.
    """
    with open(os.devnull, "w") as nowhere:
        errors = logs.Output(sys.stderr or nowhere)
        output = logs.Output(sys.stdout or nowhere, note=errors, plain=True)
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors), _ended_in_one_line():
            if alone and distributed.started_by_torchrun():
                if os.environ.get("RANK", "0") != "0":  # the first one says it
                    sys.exit(UserError.exit_code)
                raise UserError("torchrun: this script runs in one process alone; start it with python3")
            with ending_on_sigterm():
                yield


@contextlib.contextmanager
def _ended_in_one_line():
    name = Path(sys.argv[0]).name
    try:
        yield
    except (UserError, distributed.ProcessLost) as error:
        print(f"{name}: error: {in_one_line(error)}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
    except Stopped as stopped:
        if distributed.rank() == 0:
            again = in_one_line(resume_command())
            print(f"{name}: {stopped}; continue with: {again}", file=sys.stderr, flush=True)
        sys.exit(stopped.exit_code)
    except KeyboardInterrupt:  # where no `Interrupts` notes it
        print(f"{name}: stopped by Ctrl-C", file=sys.stderr, flush=True)
        sys.exit(130)
