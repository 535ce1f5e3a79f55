"""The one exception that means "the user can put this right"."""


class UserError(Exception):
    """Bad input. The message names the flag or file and says what to do; scripts print it and exit with 2."""

    exit_code = 2


def reason(error: Exception) -> str:
    """The first line of what an exception says, at most 200 characters, or its name where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200].rstrip(": ")
