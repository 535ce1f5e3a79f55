"""Trains networks on real images, once, for many distillations: `--pool` of the other scripts takes them.

    python3 -u pretrain.py --dataset MNIST --model ConvNet --networks 3 --steps 400 --stages 100 200 400
    python3 -u BACON_mnist.py --dataset MNIST --model ConvNet --ipc 10 --pool pretrained/MNIST_ConvNet ...

They are trained as the pool is, on batches of real images without augmentation, and kept after each of --stages in
<save_path>/<dataset>_<model>/, a file for each network. The same command goes on after it was stopped, leaves finished
networks as they are, and with a higher --networks adds more. Started several times, also on several machines that share
the folder, each process takes the networks that no other one is training.
"""

import torch

from utils import device, experiment, files, networks, options, pretrained


def parse(arguments: list[str] | None = None):
    """The options of a command line; a bad one ends the program with one line and exit code 2."""
    parser = options.new_parser(__doc__)
    options.add_data(parser)
    parser.set_defaults(save_path=options.path("pretrained"))
    flag = parser.add_argument_group("networks").add_argument
    flag("--model", type=options.accepted_by(options.check_pool_network), default="ConvNet", help="ConvNet variant")
    flag("--networks", type=options.integer(1), default=10, help="how many networks")
    flag("--steps", type=options.integer(1), default=2000, help="training steps of each")
    flag("--stages", type=options.integer(0), nargs="+",
         help="steps after which a network is kept, 0: untrained; None: --steps, its half, and so on down to 100")
    flag("--trained_bs", type=options.integer(1), default=256, help="batch size")
    flag("--lr_net", type=options.number(0, above=True), default=0.01, help="learning rate")
    options.switch(flag, "net_decay", True, "momentum 0.9 and weight decay 5e-4, as all published commands have it")
    return _checked(parser, parser.parse_args(arguments))


def _checked(parser, chosen):
    """The options with what was left out; ends the program where they do not go together."""
    if networks.has_batch_norm(chosen.model):
        parser.error(f"--model {chosen.model}: batch normalisation would change networks that are kept; choose another "
                     "ConvNet variant")
    chosen.stages = sorted(set(chosen.stages or pretrained.default_stages(chosen.steps)))
    if chosen.stages[-1] > chosen.steps:
        parser.error(f"--stages {chosen.stages[-1]}: later than --steps {chosen.steps}; raise --steps")
    if chosen.stages[-1] < chosen.steps:
        parser.error(f"--steps {chosen.steps}: the last of --stages is {chosen.stages[-1]}, so what follows would be "
                     "lost; make them equal")
    if chosen.compile is None:
        chosen.compile = device.choose(chosen.device).type == "cpu" and chosen.steps * chosen.networks >= 1000
    return chosen


def folder_name(chosen) -> str:
    """Of one data set, network, size of images and whitening, whose networks may be used together."""
    size = f"_{chosen.im_size}px" if chosen.im_size else ""
    return f"{chosen.dataset}_{chosen.model}{size}{'_zca' * chosen.zca}{'_validation' * chosen.validation}"


def main() -> None:
    """Trains what is missing, network by network."""
    chosen = parse()
    device.keep_freed_memory()
    with device.memory_accounted(chosen):
        data = experiment.load_data(chosen)
        with torch.device("meta"):
            networks.get_network(chosen.model, *data.network_shape)
        folder = files.make_folder(chosen.save_path / folder_name(chosen))
        busy = [number for number in range(chosen.networks)
                if not pretrained.train(folder, number, data, chosen)]
    if busy:
        print(f"networks {', '.join(map(str, busy))} are being trained by other processes")
    print(f"{folder}: take them with --pool {folder}")


if __name__ == "__main__":
    with experiment.reported(alone=True):
        main()
