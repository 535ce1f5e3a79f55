"""Times the engine beside the literal class-by-class loop of utils/reference.py, in turn, on this machine.

    python3 -u benchmark.py --dataset MNIST --data_path data --rounds 2
    python3 -u benchmark.py --growth --dataset CIFAR100 --data_path data
    python3 -u benchmark.py --accuracy compared/MNIST/compare.json --data_path data

Without more flags: the published MNIST command for 10 images per class. Every flag of the entry scripts can be added.
With --pool no network is trained, so that row is left out. Prints a table and leaves it in --save_path as
benchmark_<run>_<precision>[_compiled].json; --growth leaves growth.json and growth.png. --accuracy also leaves
accuracy.png: what compare.py found, against seconds, and --method as the literal loop would do it. One iteration of
several processes:

    torchrun --nproc_per_node=2 benchmark.py --only engine --data_path data
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from utils import augment, evaluation, methods, storage
from utils.data import RealData, load_data
from utils.distill import Distillation
from utils.draws import generator
from utils.networks import get_network
from utils.networks.batches import is_compiled
from utils.options import PUBLISHED_MNIST, Parser, as_path, parse_options, replaced, whole_number
from utils.run_files import circumstances, plain, run_name, undamaged
from utils.system import device, distributed, files, memory
from utils.system.errors import UserError, reason
from utils.system.reporting import reported

ITERATION = ("image update", "pool training")
EPOCHS = 3  # of a training that is timed
# What grows: its values, and that of the other.
GROWTH = {"classes": ((10, 50, 100, 200), 10), "images per class": ((1, 10, 50), 10)}


def clock(of: torch.device) -> float:
    if of.type == "cuda":
        torch.cuda.synchronize(of)
    return time.perf_counter()


def timed(of: torch.device, work: Callable[[], object], least: float = 0.1) -> float:
    """Seconds of one call, the mean of as many as take `least` seconds together."""
    calls = 1
    while True:
        begun = clock(of)
        for _ in range(calls):
            work()
        seconds = clock(of) - begun
        if distributed.all_reduce_max(seconds >= least):
            return seconds / calls
        calls *= 2


def evaluation_parts(data: RealData, options, images: torch.Tensor):
    """What evaluation takes: the stored images (K, ipc, C, H, W) expanded, labels, a network, options of few epochs."""
    images, labels = storage.expand(*storage.labelled(images.detach()), augment.formation(options.aug))
    network = get_network(options.model, *data.network_shape, seed=0)
    few = replaced(options, epoch_eval_train=EPOCHS - 1)
    return images, labels.to(data.device), network.to(data.device), few


def time_engine(data: RealData, options) -> dict[str, float]:
    """Seconds of each phase, after one to warm up: one iteration, one evaluation epoch, one test."""
    engine = Distillation(data, options)
    images, labels, network, few = evaluation_parts(data, options, engine.images)
    runner = engine.pool.runner
    runner.prepare(network, data.device, data.dtype)

    def epochs():
        evaluation.train(network, images, labels, few, generator(0), runner)

    def test():
        evaluation.test(network, data, options.max_batch, runner)

    engine.step(0)
    epochs()
    test()
    return {**{phase: timed(data.device, work) for phase, work in phases_of(engine).items()},
            "evaluation epoch": timed(data.device, epochs) / EPOCHS, "test pass": timed(data.device, test)}


def phases_of(engine: Distillation) -> dict[str, Callable[[], None]]:
    """What iteration 1 does, to be timed; with --pool no network is trained."""
    loops = range(engine.options.outer_loop)

    def update():
        engine.pool.grow(1)
        members = engine.pool.matching(1)
        for loop in loops:
            engine.match(members, 1, loop)

    def train():
        for turn in loops:
            engine.pool.train(turn)

    return {"image update": update} | ({} if engine.options.pool else {"pool training": train})


def time_reference(data: RealData, options) -> dict[str, float]:
    """The same of the literal loop and the published evaluation, with the default allocator and PyTorch's defaults
    (on a GPU, convolutions in TF32)."""
    sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
    from utils.reference import PretrainedLoop, ReferenceDM, ReferenceLoop, accuracy_on_test_images, evaluate_synset

    if options.method == "DM":
        loop = ReferenceDM(data, options)
        phases = {"image update": lambda: loop.step(1), "pool training": lambda: None}
    else:
        loop = (PretrainedLoop if options.pool else ReferenceLoop)(data, options)
        loops = range(options.outer_loop)
        phases = {"image update": lambda: [loop.update(loop.chosen(1), 1, ol) for ol in loops]}
        if not options.pool:
            phases["pool training"] = lambda: [loop.train_networks(ol) for ol in loops]
    images, labels, network, few = evaluation_parts(data, options, loop.image_syn.unflatten(0, (data.num_classes, -1)))

    def epochs():
        evaluate_synset(network, images, labels, few, generator(0))

    def test():
        accuracy_on_test_images(network, data)

    loop.step(0)
    epochs()
    if data.device.type == "cuda":  # where a first call prepares much
        test()
    return {**{phase: timed(data.device, work) for phase, work in phases.items()},
            "evaluation epoch": timed(data.device, epochs) / EPOCHS,
            "test pass": timed(data.device, test)}


LOOPS = {"engine": time_engine, "reference": time_reference}


def matmul_rate(of: torch.device, precision: str) -> float:
    """Floating-point operations per second of matrix products at a precision, the best of ten.

    The matrices grow until a product takes a while, so that one of a CPU without bf16, which is emulated, ends.
    """
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    size, most, seconds = 128, 8192 if of.type == "cuda" else 2048, 0.0
    while size < most and seconds < 0.02:
        size *= 2
        a = torch.randn(size, size, device=of, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
        seconds = timed(of, lambda a=a: a @ a, 0.0)
    return 2 * size**3 / min(timed(of, lambda: a @ a, 0.02) for _ in range(10))


def copy_rate(of: torch.device) -> float:
    """Bytes per second, read and written, of copying 256 MB, the best of ten."""
    a = torch.ones(2**26, device=of)
    b = torch.empty_like(a)
    return 2 * a.nbytes / min(timed(of, lambda: b.copy_(a), 0.02) for _ in range(10))


def operations(data: RealData, options) -> dict[str, float]:
    """Operations that each phase needs, counted in forward passes of one image: 3 for a training image,
    1 for a real image (no gradient), 2 for a synthetic one (gradient of the input alone)."""
    network = get_network(options.model, *data.network_shape)
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, *data.image_shape))
    synthetic = data.num_classes * options.ipc * augment.tiles(options.aug)
    real = sum(min(count, options.batch_real) for count in data.class_sizes)
    trained = options.fetch_net_num * options.model_train_steps * options.trained_bs
    images = {"image update": options.outer_loop * options.train_net_num * (real + 2 * synthetic),
              "pool training": options.outer_loop * 3 * trained,
              "evaluation epoch": 3 * synthetic, "test pass": len(data.test_labels)}
    if options.pool:
        del images["pool training"]
    return {phase: count * counter.get_total_flops() for phase, count in images.items()}


def child(loop: str) -> dict[str, float]:
    """Times one loop in a process of its own, so that neither inherits the other's memory."""
    done = subprocess.run([sys.executable, __file__, "--only", loop, *sys.argv[1:]], capture_output=True, text=True,
                          check=False)
    if done.returncode:
        sys.stderr.write(done.stderr)
        sys.exit(done.returncode)
    return json.loads(done.stdout.splitlines()[-1])


def compare(data: RealData, options) -> dict[str, dict]:
    """The table of both loops, printed and written; its rows by phase."""
    rounds = [{loop: child(loop) for loop in LOOPS} for _ in range(options.rounds)]
    rates = {precision: matmul_rate(data.device, precision)
             for precision in dict.fromkeys(("fp32", "bf16", options.precision))}
    copied, work = copy_rate(data.device), operations(data, options)
    result = about(data, options) | {"matmul": rates, "copy": copied, "phases": {}}
    print(f"{run_name(options)}, {options.precision}, {'' if result['compiled'] else 'not '}compiled; "
          f"{result['machine']}; median of {options.rounds} rounds\nmatrix products: "
          + ", ".join(f"{rate / 1e9:.0f} GFLOP/s in {precision}" for precision, rate in rates.items())
          + f"; copying: {copied / 1e9:.1f} GB/s")
    print(f"{'milliseconds':18} {'reference':>10} {'engine':>10} {'share':>6} {'ratio':>6} {'GFLOP/s':>8} "
          f"{'of matmul':>9}")
    iteration = tuple(part for part in ITERATION if part in work)
    whole = float(np.median([sum(r["engine"][part] for part in iteration) for r in rounds]))
    for phase, parts in {"iteration": iteration, **{part: (part,) for part in work if work[part]}}.items():
        times = {loop: [sum(r[loop][part] for part in parts) for r in rounds] for loop in LOOPS}
        seconds = {loop: float(np.median(values)) for loop, values in times.items()}
        ratio = float(np.median(np.divide(times["reference"], times["engine"])))
        share = seconds["engine"] / whole if set(parts) <= set(iteration) else None
        rate = sum(work[part] for part in parts) / seconds["engine"]
        print(f"{phase:18} {1e3 * seconds['reference']:10.1f} {1e3 * seconds['engine']:10.1f} "
              f"{'-' if share is None else f'{100 * share:.0f}%':>6} {ratio:6.2f} {rate / 1e9:8.0f} "
              f"{100 * rate / rates[options.precision]:8.0f}%")
        result["phases"][phase] = {**seconds, "ratio": ratio, "share": share, "flops_per_second": rate}
    how = f"{options.precision}{'_compiled' * result['compiled']}"
    files.write_json(options.save_path / f"benchmark_{run_name(options)}_{how}.json", result)
    return result["phases"]


def compared(options) -> list[dict]:
    """The rows of --accuracy for this network and IPC; UserError where it is damaged or --method not among them."""
    with undamaged(options.accuracy):
        rows = [row for row in json.loads(files.read_text(options.accuracy))["rows"]
                if (row["network"], row["ipc"], row["options"]["dataset"]) ==
                (options.model, options.ipc, options.dataset)]
        if not all(0 <= float(point[name]) < float("inf") for row in rows for point in row["curve"]
                   for name in ("seconds", "mean", "std")):
            raise ValueError("its curves are none")
        if options.method not in [row["method"] for row in rows]:
            raise UserError(f"--accuracy: {options.accuracy} has no {options.method} of {options.dataset}, "
                            f"{options.model}, IPC {options.ipc}; name another file, or these flags as it has them")
    return rows


def plot_accuracy(rows: list[dict], options, ratio: float) -> None:
    """Accuracy against seconds of all that compare.py ran, and of --method by the literal loop, which gives the same
    images `ratio` times as slowly."""
    from utils.commands.compare import plot as plot_compared

    own, = (row for row in rows if row["method"] == options.method)
    literal = own | {"method": f"{own['method']}, literal loop", "curve": [
        point | {"seconds": ratio * point["seconds"]} for point in own["curve"]]}
    plot_compared(options.dataset, [literal, *rows], options.save_path / "accuracy.png", against="seconds")
    print(options.save_path / "accuracy.png")


def about(data: RealData, options) -> dict:
    """The circumstances of a figure, and what else a benchmark depends on."""
    return {**circumstances(data.device),
            "torch": str(torch.__version__), "compiled": is_compiled(options.compile, data.device, options.Iteration),
            "options": plain(options)}


def check_compiler(of: torch.device) -> None:
    """UserError where networks would go on uncompiled, as they do quietly in a run."""
    try:
        torch.compile(torch.neg)(torch.ones(2, device=of))
    except Exception as error:  # of many kinds
        raise UserError(f"--compile: PyTorch cannot compile here ({reason(error)}); install a compiler, or leave it "
                        "out") from None


def first_classes(data: RealData, count: int) -> RealData:
    """The data set of the first `count` classes alone."""
    train, test = data.labels < count, data.test_labels < count
    return replace(data, images=data.images[train], labels=data.labels[train], test_images=data.test_images[test],
                   test_labels=data.test_labels[test], class_names=data.class_names[:count])


def grow(data: RealData, options) -> None:
    """Seconds of the engine's iteration against classes and images per class, printed, written and plotted."""
    points = []
    for what, (values, other) in GROWTH.items():
        for value in values:
            classes, ipc = (value, other) if what == "classes" else (other, value)
            if classes > data.num_classes:
                print(f"{data.name} has no {classes} classes", flush=True)
                continue
            try:
                engine = Distillation(first_classes(data, classes), replaced(options, ipc=ipc))
            except UserError as error:
                print(f"{classes} classes, {ipc} images per class: left out ({error})", flush=True)
                continue
            engine.step(0)
            seconds = {phase: float(np.median([timed(data.device, work) for _ in range(options.rounds)]))
                       for phase, work in phases_of(engine).items()}
            points.append({"growing": what, "classes": classes, "ipc": ipc, "seconds": seconds})
            print(f"{classes} classes, {ipc} images per class: "
                  + ", ".join(f"{phase} {value:.3f} s" for phase, value in seconds.items()), flush=True)
    files.write_json(options.save_path / "growth.json", about(data, options) | {"points": points})
    plot(points, f"{data.name}, {options.model}, {data.image_shape[1]}x{data.image_shape[2]}",
         options.save_path / "growth.png")
    print(f"{options.save_path}: growth.json, growth.png")


def plot(points: list[dict], title: str, path: Path) -> None:
    """Seconds per iteration, and the part of pool training, against what grows; a panel for each."""
    from matplotlib.figure import Figure  # here, because these take a second that --help does not have

    from utils import figures

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, (what, (_, other)) in zip(figure.subplots(1, len(GROWTH)), GROWTH.items(), strict=True):
        own = [point for point in points if point["growing"] == what]
        values = [point["classes" if what == "classes" else "ipc"] for point in own]
        whole = [sum(point["seconds"].values()) for point in own]
        axes.plot(values, whole, marker="o", label="iteration")
        axes.plot(values, [point["seconds"]["pool training"] for point in own], marker="o", linestyle="--",
                  label="of it, pool training")
        fixed = f"IPC {other}" if what == "classes" else f"{other} classes"
        axes.set(xlabel=what, ylabel="seconds", title=f"{title}, {fixed}", xlim=0, ylim=0)
        axes.grid(alpha=0.3)
        axes.legend()
    figures.save_png(figure, path)


def add_flags(parser: Parser) -> None:
    parser.add_argument("--rounds", type=whole_number(1), default=2, help="times each loop is timed")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--only", choices=tuple(LOOPS), help="time one loop, once, and print JSON")
    what.add_argument("--growth", action="store_true",
                      help="time the engine alone, against the number of classes (the first of the data set) and of "
                           "images per class")
    parser.add_argument("--accuracy", type=as_path, metavar="PATH",
                        help="a compare.json of this data set, network and IPC, to plot against seconds")


def main() -> None:
    options = parse_options(__doc__, add_flags=add_flags, **PUBLISHED_MNIST,
                         precision="tf32" if torch.cuda.is_available() else "fp32")
    if methods.find(options.method).objective is None:
        raise UserError(f"--method {options.method}: has no iterations to time; choose BACON, IDM or DM")
    if options.method not in methods.METHODS and options.only != "engine" and not options.growth:
        raise UserError(f"--method {options.method}: the literal loop knows BACON, IDM and DM alone; add --only engine "
                        "or --growth")
    if options.ce_stages and options.only != "engine":
        raise UserError("--ce_stages: the literal loop takes the cross-entropy from the network it matches on; add "
                        "--only engine")
    if options.pool and options.growth:
        raise UserError("--growth: it leaves classes out, of which the networks of --pool know all; leave --pool out")
    if options.accuracy and options.growth:
        raise UserError("--accuracy: --growth times the engine alone; leave one out")
    if distributed.started_by_torchrun() and options.only != "engine":
        raise UserError("torchrun: several processes can time the engine alone; add --only engine")
    if options.only != "reference":
        memory.keep_freed_memory()
    with distributed.process_group(device.find(options.device)), memory.enough_memory(options.max_batch):
        data = load_data(options)
        if is_compiled(options.compile, data.device, options.Iteration) and options.only != "reference":
            check_compiler(data.device)
        if options.only:
            print(json.dumps(LOOPS[options.only](data, options)))
            return
        rows = compared(options) if options.accuracy else []  # found before minutes of work
        files.make_folder(options.save_path)
        if options.growth:
            grow(data, options)
            return
        phases = compare(data, options)
        if rows:
            plot_accuracy(rows, options, phases["iteration"]["ratio"])


if __name__ == "__main__":
    with reported():
        main()
