"""Times the engine beside the literal class-by-class loop of tests/reference.py, in turn, on this machine.

    python3 -u benchmark.py --dataset MNIST --data_path data --rounds 2

Without more flags: the published MNIST command for 10 images per class. Every flag of the entry scripts
can be added. Prints a table and ends in one line of JSON. One iteration of several processes:

    torchrun --nproc_per_node=2 benchmark.py --only engine --data_path data
"""

import json
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from utils import data as datasets
from utils import device, evaluation, experiment, options, processes, storage
from utils.distill import Distillation
from utils.draws import generator
from utils.networks import get_network
from utils.passes import Passes

DEFAULTS = {"dataset": "MNIST", "model": "ConvNet", "ipc": 10, "lr_img": 0.2, "net_decay": True, "embed_last": 1000,
            "syn_ce": True, "ce_weight": 0.5, "train_net_num": 1, "aug": True}


def clock(of: torch.device) -> float:
    if of.type == "cuda":
        torch.cuda.synchronize(of)
    return time.perf_counter()


def timed(of: torch.device, work) -> float:
    begun = clock(of)
    work()
    return clock(of) - begun


def evaluation_parts(data: datasets.RealData, args, images: torch.Tensor):
    """What evaluation takes: the stored images (N, C, H, W) expanded, labels, a network, options of one pass."""
    labels = torch.arange(data.num_classes).repeat_interleave(args.ipc)
    images, labels = storage.expand(images.detach(), labels, 2 if args.aug else 1)
    channel, *size = data.image_shape
    network = get_network(args.model, channel, data.num_classes, tuple(size), seed=0)
    return images, labels.to(data.device), network.to(data.device), Namespace(**vars(args) | {"epoch_eval_train": 0})


def time_engine(data: datasets.RealData, args) -> dict[str, float]:
    """Seconds of each phase, after one to warm up: one iteration, one evaluation epoch, one test."""
    device.keep_freed_memory()
    engine = Distillation(data, args)
    images, labels, network, one_pass = evaluation_parts(data, args, engine.images.flatten(0, 1))
    passes = engine.pool.passes
    passes.prepare(network, data.device, data.dtype)

    def update():
        engine.pool.grow(1)
        for member in engine.pool.matching(1, 0):
            engine.update_images(member, 1, 0)

    def epoch():
        evaluation.train(network, images, labels, one_pass, generator(0), passes)

    def test():
        evaluation.test(network, data, args.max_batch, passes)

    engine.step(0)
    epoch()
    test()
    return {"image update": timed(data.device, update),
            "pool training": timed(data.device, lambda: engine.pool.train(1)),
            "evaluation epoch": timed(data.device, epoch), "test pass": timed(data.device, test)}


def time_reference(data: datasets.RealData, args) -> dict[str, float]:
    """The same of the literal loop and the published evaluation, with the C library's default allocator."""
    sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
    from reference import ReferenceLoop, accuracy_on_test_images, evaluate_synset

    loop = ReferenceLoop(data, args)
    images, labels, network, one_pass = evaluation_parts(data, args, loop.image_syn)

    def update():
        for k in loop.draws.matching_networks(1, 0, len(loop.nets), args.train_net_num):
            loop.update_images(k, 1, 0)

    def epoch():
        evaluate_synset(network, images, labels, one_pass, generator(0))

    loop.step(0)
    epoch()
    return {"image update": timed(data.device, update),
            "pool training": timed(data.device, lambda: loop.train_networks(1)),
            "evaluation epoch": timed(data.device, epoch),
            "test pass": timed(data.device, lambda: accuracy_on_test_images(network, data))}


LOOPS = {"engine": time_engine, "reference": time_reference}


def matmul_rate(of: torch.device, precision: str, size: int = 2048) -> float:
    """Floating-point operations per second of matrix products at a precision, the best of ten."""
    a = torch.randn(size, size, device=of, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    seconds = []
    for _ in range(10):
        begun = clock(of)
        a @ a
        seconds.append(clock(of) - begun)
    return 2 * size**3 / min(seconds)


def operations(data: datasets.RealData, args) -> dict[str, float]:
    """Operations that each phase needs, counted in forward passes of one image: 3 for a training image,
    1 for a real image (no gradient), 2 for a synthetic one (gradient of the input alone)."""
    channel, *size = data.image_shape
    network = get_network(args.model, channel, data.num_classes, tuple(size))
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, channel, *size))
    synthetic = data.num_classes * args.ipc * (4 if args.aug else 1)
    real = sum(min(count, args.batch_real) for count in data.class_sizes)
    passes = {"image update": args.train_net_num * args.outer_loop * (real + 2 * synthetic),
              "pool training": 3 * args.fetch_net_num * args.model_train_steps * args.trained_bs,
              "evaluation epoch": 3 * synthetic, "test pass": len(data.test_labels)}
    return {phase: count * counter.get_total_flops() for phase, count in passes.items()}


def child(loop: str, arguments: list[str]) -> dict[str, float]:
    """Times one loop in a process of its own, so that neither inherits the other's memory."""
    done = subprocess.run([sys.executable, __file__, "--only", loop, *arguments], capture_output=True, text=True,
                          check=False)
    if done.returncode:
        sys.stderr.write(done.stderr)
        sys.exit(done.returncode)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = options.build_parser(__doc__, DEFAULTS)
    parser.add_argument("--rounds", type=int, default=2, help="times each loop is timed")
    parser.add_argument("--only", choices=tuple(LOOPS), help="time one loop, once, and print JSON")
    args = parser.parse_args()
    with processes.joined(device.choose(args.device)):
        data = experiment.load_data(args)
        if args.only:
            print(json.dumps(LOOPS[args.only](data, args)))
            return
    arguments = sys.argv[1:]
    rounds = [{loop: child(loop, arguments) for loop in LOOPS} for _ in range(args.rounds)]
    peaks = {precision: matmul_rate(data.device, precision) for precision in ("fp32", "bf16")}
    work, where = operations(data, args), device.describe(data.device)
    peak = peaks["bf16" if args.precision == "bf16" else "fp32"]
    compiled = "compiled" if Passes(args, data.device).compiled else "not compiled"
    rates = ", ".join(f"{rate / 1e9:.0f} GFLOP/s in {precision}" for precision, rate in peaks.items())
    print(f"{args.dataset} IPC {args.ipc}, {args.model}, {args.precision}, {compiled}; {where}; "
          f"median of {args.rounds} rounds\nmatrix products: {rates}")
    print(f"{'seconds':22} {'reference':>10} {'engine':>10} {'ratio':>6} {'GFLOP/s':>8} {'of matmul':>9}")
    result = {"machine": where, "date": time.strftime("%Y-%m-%d"), "torch": str(torch.__version__),
              "options": vars(args) | {"data_path": str(args.data_path), "save_path": str(args.save_path)},
              "matmul": peaks, "phases": {}}
    iteration = ("image update", "pool training")
    for phase, parts in {"iteration": iteration, **{part: (part,) for part in work}}.items():
        seconds = {loop: float(np.median([sum(r[loop][part] for part in parts) for r in rounds])) for loop in LOOPS}
        ratio = float(np.median([sum(r["reference"][p] for p in parts) / sum(r["engine"][p] for p in parts)
                                 for r in rounds]))
        rate = sum(work[part] for part in parts) / seconds["engine"]
        print(f"{phase:22} {seconds['reference']:10.2f} {seconds['engine']:10.2f} {ratio:6.2f} {rate / 1e9:8.0f} "
              f"{100 * rate / peak:8.0f}%")
        result["phases"][phase] = {**seconds, "ratio": ratio, "flops_per_second": rate}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
