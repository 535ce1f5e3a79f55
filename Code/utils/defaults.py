"""What the script of a data set sets in place of the flags' own defaults (options.py). A flag comes before both."""

DIGITS = {
    "model": "ConvNetW32",
    "ipc": 1,
    "Iteration": 100,
    "num_exp": 1,
    "num_eval": 5,
    "eval_interval": 50,
    "epoch_eval_train": 80,
    "lr_img": 1.0,
    "lr_net": 0.03,
    "batch_real": 64,
    "aug": True,
    "embed_last": 1000,
    "syn_ce": True,
    "ce_weight": 0.005,  # its factor is the accuracy in percent; the published 0.5 overshoots within 100 iterations
    "net_decay": True,
    "train_net_num": 1,
    "model_train_steps": 3,
    "trained_bs": 64,
}
BY_DATASET = {"digits": DIGITS, "CIFAR10": {"ipc1_real": 2560}, "folder": {"ipc": 1}}
BY_METHOD = {"CIFAR10": {"BACON": {"num_eval": 1}}}


def of(dataset: str) -> dict:
    """The defaults of a data set's script, as `parse_options` takes them."""
    return {"dataset": dataset, "by_method": BY_METHOD.get(dataset), **BY_DATASET.get(dataset, {})}
