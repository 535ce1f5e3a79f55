"""System calls that fail once, as of a full, failing or read-only disk: one line or none, and the same set after all.

A library in C, built by the test, takes the place of the C library's calls: see fault_shim.c.
"""

import ctypes
import errno
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

import children
from conftest import TINY
from test_resume import left

FLAGS = [*TINY, "--num_eval", 1, "--checkpoint_minutes", 0, "--save_path", "result"]
ERRORS = {"write": errno.ENOSPC, "fsync": errno.EIO, "create": errno.ENOSPC, "open": errno.EIO,
          "unlink": errno.EROFS, "rename": errno.EROFS, "mkdir": errno.EACCES}
MANY = 10**6  # calls, more than there are


def arm(operation, nth):
    """In the child: the nth such call fails. How many calls were made is written at the end."""
    library = ctypes.CDLL(None)
    library.arm(operation.encode(), ctypes.c_long(nth), ERRORS[operation])
    if nth == MANY:
        exit_at_once = os._exit  # which ends a forked child
        os._exit = lambda code: (Path("count").write_text(str(MANY - library.calls_left())), exit_at_once(code))


def run(folder, *flags, prepare=None):
    """The exit code of a run in the folder, and the lines of its errors."""
    child = children.start(folder, *FLAGS, *flags, prepare=prepare)
    return child.wait(), child.error().splitlines()


def faulted(folder, operation, few):
    """Every nth call of an operation fails in a run of its own, or with `few`, the one in the middle."""
    assert run(folder / "whole", prepare=partial(arm, operation, MANY)) == (0, [])
    count = int((folder / "whole" / "count").read_text())
    assert count, f"no calls of {operation}"
    for nth in [(count + 1) // 2] if few else range(1, count + 1):
        code, lines = run(folder / "faulted", prepare=partial(arm, operation, nth))
        assert (code, len(lines)) in ((0, 0), (0, 1), (2, 1)), (operation, nth, code, lines)
        assert not code or lines[0].startswith("BACON_digits.py: error: "), lines
        if code:
            assert run(folder / "faulted", "--resume", "auto") == (0, []), (operation, nth)
        assert left(folder / "faulted") == left(folder / "whole"), (operation, nth, lines)
        shutil.rmtree(folder / "faulted")


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    compiler = shutil.which("cc")
    if not compiler or not sys.platform.startswith("linux"):
        pytest.skip("no C compiler, or not on Linux")
    library = tmp_path_factory.mktemp("shim") / "shim.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, children.TESTS / "fault_shim.c", "-ldl"],
                   check=True)
    return library


def fail_each(shim, operation, few, folder):
    program = "import sys, pathlib, test_system_faults as t; t.faulted(pathlib.Path(sys.argv[1]), sys.argv[2], %r)"
    done = subprocess.run([sys.executable, "-c", program % few, folder, operation], capture_output=True, text=True,
                          cwd=folder, env=os.environ | {"LD_PRELOAD": str(shim)}, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_write_that_fails_once(shim, tmp_path):
    fail_each(shim, "write", True, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("operation", ERRORS)
def test_each_call_that_fails_once(shim, operation, tmp_path):
    fail_each(shim, operation, False, tmp_path)
