"""The published settings, by method, data set and images per class: what --published stands for.

Command.txt has each as a command, and a test holds one against the other. Flags that no line names have the defaults of
the published scripts.
"""

_ALL = {"model": "ConvNet", "dsa_strategy": "color_crop_cutout_flip_scale_rotate", "init": "real", "num_exp": 5,
        "num_eval": 5}
_BACON = _ALL | {"lr_img": 0.2, "eval_interval": 100, "outer_loop": 1, "net_decay": True, "embed_last": 1000,
                 "syn_ce": True, "ce_weight": 0.5, "train_net_num": 1, "aug": True}
_ONE = _BACON | {"batch_real": 5000, "net_generate_interval": 5}
_MANY = _BACON | {"eval_interval": 500, "ce_weight": 0.1}
_GREY = {1: _ONE, 10: _BACON, 50: _BACON}
_COLOUR = {1: _ONE, 10: _BACON, 50: _MANY}
_CIFAR10 = {ipc: setting | {"ipc1_real": 2560} for ipc, setting in _COLOUR.items()}  # the default of its script alone
_CIFAR100 = {1: _ONE, 10: _BACON | {"ce_weight": 0.1, "model_train_steps": 50, "net_num": 100}, 50: _MANY}
_LONGER = {"eval_interval": 500, "model_train_steps": 50}
_WHOLE = _BACON | {"init": "whole"}
_DM = _ALL | {"lr_img": 1.0}
_DIGITS = _DM | {"dsa_strategy": "color_crop_cutout_scale_rotate"}  # which a flip would make others

SETTINGS = {
    "BACON": {
        "MNIST": _GREY, "FashionMNIST": _GREY, "SVHN": _COLOUR, "CIFAR10": _CIFAR10,
        "CIFAR100": _CIFAR100 | {50: _MANY | {"model_train_steps": 50}},
        "TinyImageNet": {1: _BACON, 10: _BACON | _LONGER},
    },
    "IDM": {
        "MNIST": _GREY, "FashionMNIST": _GREY, "SVHN": _COLOUR, "CIFAR10": _CIFAR10, "CIFAR100": _CIFAR100,
        "TinyImageNet": {1: _WHOLE, 10: _WHOLE | {"eval_interval": 500},
                         50: _WHOLE | _LONGER | {"eval_interval": 1000, "ce_weight": 0.8}},
    },
    "DM": {
        **dict.fromkeys(("MNIST", "SVHN"), dict.fromkeys((1, 10, 50), _DIGITS)),
        **dict.fromkeys(("FashionMNIST", "CIFAR100", "TinyImageNet"), dict.fromkeys((1, 10, 50), _DM)),
        "CIFAR10": dict.fromkeys((1, 10, 50), _DM) | {100: _DM | {"lr_img": 10.0}},
    },
}


def setting(method: str, dataset: str, ipc: int) -> dict | None:
    """The flags of a published setting beside --method, --dataset and --ipc; None where there is none."""
    return SETTINGS.get(method, {}).get(dataset, {}).get(ipc)


def listed(method: str) -> str:
    """What there is, in words: the data sets and IPCs of a method, or the methods."""
    if method not in SETTINGS:
        return f"--method {', '.join(SETTINGS)}"
    return "; ".join(f"--dataset {dataset} --ipc {', '.join(map(str, found))}"
                     for dataset, found in SETTINGS[method].items())
