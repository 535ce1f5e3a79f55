"""Distils a data set:

    bacon-distil --dataset digits --ipc 10
    bacon-distil --dataset MNIST --ipc 10 --published

Flags and their defaults are those of the data set's script, BACON_<data set>.py.
"""

from ..experiment import run
from ..options import parse_any
from ..system.reporting import reported


def main() -> None:
    """The script: its command line, read and done."""
    with reported():
        run(parse_any(__doc__))
