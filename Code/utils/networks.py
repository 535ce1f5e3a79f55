"""The networks: what images are matched on, and what they are evaluated with.

`get_network(name, channel, num_classes, im_size)` builds any of `NETWORKS`. Layers, names of parameters
and shapes are those of the published implementation, so its state dicts load; unlike there, any image
size works that a network's pooling allows. Initialisation is PyTorch's default.
"""

import torch
from torch import Tensor, nn

from utils.errors import UserError

ACTIVATIONS = {
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "leakyrelu": lambda: nn.LeakyReLU(0.01),
    "swish": nn.SiLU,
}
POOLINGS = {
    "avg": lambda: nn.AvgPool2d(2, 2),
    "max": lambda: nn.MaxPool2d(2, 2),
    "none": None,
}
NORMALISATIONS = {
    "instance": lambda shape: nn.GroupNorm(shape[0], shape[0]),
    "group": lambda shape: nn.GroupNorm(4, shape[0]),
    "layer": nn.LayerNorm,
    "batch": lambda shape: nn.BatchNorm2d(shape[0]),
    "none": None,
}


class ConvNet(nn.Module):
    """Blocks of 3x3 convolution, normalisation, activation and 2x2 pooling, then one linear layer.

    Input (N, channel, H, W), output logits (N, num_classes). One-channel images are padded by 3 in the
    first convolution (28x28 becomes 32x32). `unused_batch_norms` adds the layers that the published
    ConvNet_GBN registers and never calls.
    """

    def __init__(self, channel: int, num_classes: int, im_size: tuple[int, int], width: int = 128, depth: int = 3,
                 activation: str = "relu", normalisation: str = "instance", pooling: str = "avg",
                 unused_batch_norms: bool = False):
        super().__init__()
        if unused_batch_norms:
            self.bn_layers = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(depth))
        layers: list[nn.Module] = []
        height, breadth = im_size
        for block in range(depth):
            padding = 3 if block == 0 and channel == 1 else 1
            height, breadth = height + 2 * padding - 2, breadth + 2 * padding - 2
            layers.append(nn.Conv2d(channel if block == 0 else width, width, 3, padding=padding))
            if NORMALISATIONS[normalisation]:
                layers.append(NORMALISATIONS[normalisation]((width, height, breadth)))
            layers.append(ACTIVATIONS[activation]())
            if POOLINGS[pooling]:
                layers.append(POOLINGS[pooling]())
                height, breadth = height // 2, breadth // 2
        if min(height, breadth) < 1:
            raise UserError(f"a ConvNet with {depth} poolings is too deep for images of "
                            f"{im_size[0]}x{im_size[1]}: choose a shallower --model or larger images")
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(width * height * breadth, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))

    def embed(self, x: Tensor, last: int = 1000) -> Tensor:
        """The features before layer `last` (counted as a slice's end), flattened to (N, D).

        1000, what the documented commands use, means all of them; -1 drops the final pooling.
        """
        return self.features[:last](x).flatten(1)

    def embed_and_classify(self, x: Tensor, last: int = 1000) -> tuple[Tensor, Tensor]:
        """Embedding (N, D) and logits (N, num_classes) from one pass."""
        end = len(self.features[:last])
        inner = self.features[:end](x)
        return inner.flatten(1), self.classifier(self.features[end:](inner).flatten(1))


CONVNETS = {
    "ConvNet": {},
    "ConvNet_4": {"depth": 4},
    "ConvNet_5": {"depth": 5},
    "ConvNet_BN": {"normalisation": "batch"},
    "ConvNet_GBN": {"unused_batch_norms": True},
    "ConvNet_FullyConv": {"pooling": "none"},
    "ConvNetKIP": {"width": 1024, "normalisation": "none"},
    **{f"ConvNetD{depth}": {"depth": depth} for depth in range(1, 9)},
    **{f"ConvNetW{width}": {"width": width} for width in (32, 64, 128, 256, 512, 1024)},
    "ConvNetAS": {"activation": "sigmoid"},
    "ConvNetAR": {"activation": "relu"},
    "ConvNetAL": {"activation": "leakyrelu"},
    "ConvNetASwish": {"activation": "swish"},
    "ConvNetASwishBN": {"activation": "swish", "normalisation": "batch"},
    "ConvNetNP": {"pooling": "none"},
    "ConvNetMP": {"pooling": "max"},
    "ConvNetAP": {"pooling": "avg"},
    "ConvNetNN": {"normalisation": "none"},
    "ConvNetBN": {"normalisation": "batch"},
    "ConvNetLN": {"normalisation": "layer"},
    "ConvNetIN": {"normalisation": "instance"},
    "ConvNetGN": {"normalisation": "group"},
}
NETWORKS = list(CONVNETS)


def check_name(name: str) -> str:
    """The name itself, or a UserError that lists the known ones."""
    if name not in NETWORKS:
        raise UserError(f"unknown network {name!r}; known: {', '.join(NETWORKS)}")
    return name


def get_network(name: str, channel: int, num_classes: int, im_size: int | tuple[int, int],
                seed: int | None = None) -> nn.Module:
    """A freshly initialised network on the CPU in float32.

    im_size: side, or (height, width), in pixels. seed: of the initial weights; the same seed gives the
    same weights whatever happened before, and the global random state stays as it was. None: draw from
    the global state. Raises UserError for an unknown name or images too small for the network.
    """
    check_name(name)
    if isinstance(im_size, int):
        im_size = (im_size, im_size)
    if seed is None:
        return ConvNet(channel, num_classes, im_size, **CONVNETS[name])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ConvNet(channel, num_classes, im_size, **CONVNETS[name])
