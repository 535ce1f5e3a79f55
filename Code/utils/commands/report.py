"""Shows what runs left in one page: sets, curves, embeddings, confusions, and accuracies beside the papers'.

    python3 -u report.py result
    python3 -u report.py compared/MNIST compared/CIFAR10 --quick --save_path report

Takes every run below the folders, finished or not. For embeddings and confusion a network is trained on each set
by the run's own protocol, which needs the data set. Leaves report.html, a single file that opens without
network, and report.md with its pictures in report_files/.
"""

from argparse import Namespace

from ..command_line import as_path, new_parser, whole_number
from ..system.errors import needed_for
from ..system.reporting import reported


def parse() -> Namespace:
    parser = new_parser(__doc__)
    parser.add_argument("folders", type=as_path, nargs="+", metavar="RESULT_FOLDER",
                        help="what runs left in --save_path, or a folder of such folders")
    parser.add_argument("--save_path", type=as_path, help="folder for the report (default: the first RESULT_FOLDER)")
    parser.add_argument("--quick", action="store_true",
                        help="train no networks: no embeddings, no confusion matrix, no starting images")
    parser.add_argument("--data_path", type=as_path,
                        help="folder of the data sets, for runs whose own is not there; what is missing is downloaded")
    parser.add_argument("--epoch_eval_train", type=whole_number(0),
                        help="epochs to train the network, less 1 (default: each run's own)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="to train it on")
    parser.add_argument("--max_batch", type=whole_number(1), help="images per network pass (default: each run's own)")
    return parser.parse_args()


def main() -> None:
    """The script: its command line, read and done."""
    with reported(alone=True):
        options = parse()
        with needed_for("report.py", "matplotlib, jinja2 and scikit-learn"):
            from .. import report_page  # here, because these take seconds that --help does not have
        report_page.run(options)
