"""The one exception that means "the user can put this right"."""


class UserError(Exception):
    """Bad input. The message names the flag or file and says what to do; scripts print it and exit with 2."""
