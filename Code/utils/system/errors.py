"""The one exception that means "the user can put this right", and what those of others mean."""

import contextlib
from typing import TextIO

import torch

OUT_OF_MEMORY = "allocate memory", "out of memory", "ALLOC_FAILED"  # of the CPU, CUDA, its libraries


class UserError(ValueError):
    """Bad input. The message, a line, names the flag or file and says what to do; scripts print it and exit with 2."""

    exit_code = 2

    def __init__(self, message: object):
        super().__init__(in_one_line(message))


class LacksMemory(UserError):
    """A file may be whole, but there is too little memory for it. No batch of a network is to blame."""

    def __init__(self, path: object, error: Exception):
        super().__init__(f"{path}: it takes more memory than there is ({reason(error)}); free some, or take a machine "
                         "with more, then start again")


@contextlib.contextmanager
def memory_for(path: object):
    """Around work on what a file holds: too little memory becomes LacksMemory."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error) and str(error):  # that of a damaged pickle has no words
            raise LacksMemory(path, error) from None
        raise


@contextlib.contextmanager
def needed_for(what: str, package: str):
    """Around the import of a package that not all need: where it is not installed, a UserError says what does."""
    try:
        yield
    except ImportError as error:
        raise UserError(f"{what}: {package} is needed ({reason(error)}); install it: pip install {package}") from None


def reason(error: Exception) -> str:
    """The first line of what an exception says, at most 200 characters, or its name where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200].rstrip(": ")


def in_one_line(text: object) -> str:
    """Text as one line: what would move the cursor of a terminal, or is no letter, is shown by its number."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in str(text))


def say(text: object, file: TextIO | None = None) -> None:
    """Prints a line, at once, whatever is in names of files and classes: to standard output or to a file."""
    print(in_one_line(text), file=file, flush=True)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an exception of Python, PyTorch or a GPU's libraries says that there is too little memory."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY))
