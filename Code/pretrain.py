"""Trains networks on real images, once, for many distillations: `--pool` of the other scripts takes them.

    python3 -u pretrain.py --dataset MNIST --model ConvNet --networks 3 --steps 400 --stages 100 200 400
    python3 -u BACON_mnist.py --dataset MNIST --model ConvNet --ipc 10 --pool pretrained/MNIST_ConvNet ...

They are trained as the pool is, on batches of real images without augmentation, and kept after each of --stages in
<save_path>/<dataset>_<model>/, a file for each network. The same command goes on after it was stopped, leaves finished
networks as they are, and with a higher --networks adds more. Started several times, also on several machines that share
the folder, each process takes the networks that no other one is training.
"""

import torch

from utils import networks, pretrained, run_files
from utils.data import load_data
from utils.experiment import memory_accounted
from utils.options import (
    accepted_by,
    add_data,
    as_path,
    check_pool_network,
    finite_number,
    give_name,
    new_parser,
    switch,
    whole_number,
)
from utils.system import device, files, memory
from utils.system.reporting import reported


def parse(arguments: list[str] | None = None):
    """The options of a command line; a bad one ends the program with one line and exit code 2."""
    parser = new_parser(__doc__)
    add_data(parser)
    parser.set_defaults(save_path=as_path("pretrained"))
    flag = parser.add_argument_group("networks").add_argument
    flag("--model", type=accepted_by(check_pool_network, networks.CONVNETS), default="ConvNet", help="ConvNet variant")
    flag("--networks", type=whole_number(1), default=10, help="how many networks")
    flag("--steps", type=whole_number(1), default=2000, help="training steps of each")
    flag("--stages", type=whole_number(0), nargs="+",
         help="steps after which a network is kept, 0: untrained (default: --steps, its half, and so on down to 100)")
    flag("--trained_bs", type=whole_number(1), default=256, help="batch size")
    flag("--lr_net", type=finite_number(0, above=True), default=0.01, help="learning rate")
    switch(flag, "net_decay", True, "momentum 0.9 and weight decay 5e-4, as all published commands have it")
    options = parser.parse_args(arguments)
    give_name(parser, options, lambda options: options.save_path / folder_name(options))
    return _checked(parser, options)


def _checked(parser, options):
    """The options with what was left out; ends the program where they do not go together."""
    if networks.has_batch_norm(options.model):
        parser.error(f"--model {options.model}: batch normalisation would change networks that are kept; choose "
                     "another ConvNet variant")
    options.stages = sorted(set(options.stages or pretrained.default_stages(options.steps)))
    if options.stages[-1] > options.steps:
        parser.error(f"--stages {options.stages[-1]}: later than --steps {options.steps}; raise --steps")
    if options.stages[-1] < options.steps:
        parser.error(f"--steps {options.steps}: the last of --stages is {options.stages[-1]}, so what follows would be "
                     "lost; make them equal")
    if options.compile is None:
        options.compile = device.find(options.device).type == "cpu" and options.steps * options.networks >= 1000
    return options


def folder_name(options) -> str:
    """Of one data set, network, size of images and whitening, whose networks may be used together."""
    size = f"_{options.im_size}px" if options.im_size else ""
    name = run_files.data_name(options)
    return f"{name}_{options.model}{size}{'_zca' * options.zca}{'_validation' * options.validation}"


def main() -> None:
    """Trains what is missing, network by network."""
    options = parse()
    memory.keep_freed_memory()
    with memory_accounted(options, resumable=False):
        data = load_data(options)
        with torch.device("meta"):
            networks.get_network(options.model, *data.network_shape)
        folder = files.make_folder(options.save_path / folder_name(options))
        busy = [number for number in range(options.networks)
                if not pretrained.train(folder, number, data, options)]
    if busy:
        print(f"networks {', '.join(map(str, busy))} are being trained by other processes")
    print(f"{folder}: take them with --pool {folder}")


if __name__ == "__main__":
    with reported(alone=True):
        main()
