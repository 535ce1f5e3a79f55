"""The networks: what images are matched on, and what they are evaluated with.

`get_network(name, channel, num_classes, im_size)` builds any of `NETWORKS`. Layers, names of parameters
and shapes are those of the published implementation, so its state dicts load; unlike there, any image
size works that a network's pooling allows. Initialisation is PyTorch's default. One-channel images get
wider padding in the first convolution where noted, which makes 28x28 images 32x32.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..system.errors import UserError
from .fast_layers import AvgPool2d, Conv2d, GroupNorm

ACTIVATIONS = {
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "leakyrelu": lambda: nn.LeakyReLU(0.01),
    "swish": nn.SiLU,
}
POOLINGS = {
    "avg": AvgPool2d,
    "max": lambda: nn.MaxPool2d(2, 2),
    "none": None,
}
NORMALISATIONS = {
    "instance": lambda shape: GroupNorm(shape[0], shape[0]),
    "group": lambda shape: GroupNorm(4, shape[0]),
    "layer": nn.LayerNorm,
    "batch": lambda shape: nn.BatchNorm2d(shape[0]),
    "none": None,
}


class ConvNet(nn.Module):
    """Blocks of 3x3 convolution, normalisation, activation and 2x2 pooling, then one linear layer.

    Input (N, channel, H, W), output logits (N, num_classes). The only family with `embed`, hence the only
    one that images can be matched on. One-channel images are padded by 3. `unused_batch_norms` adds the
    layers that the published ConvNet_GBN registers and never calls.
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
            if normalisation == "instance" and height * breadth == 1:
                raise ValueError("a value that is normalised alone is 0")
            layers.append(Conv2d(channel if block == 0 else width, width, 3, padding=padding))
            if NORMALISATIONS[normalisation]:
                layers.append(NORMALISATIONS[normalisation]((width, height, breadth)))
            layers.append(ACTIVATIONS[activation]())
            if POOLINGS[pooling]:
                layers.append(POOLINGS[pooling]())
                height, breadth = height // 2, breadth // 2
        self.features = nn.Sequential(*layers)
        if not height * breadth:
            raise ValueError("pooled to nothing")
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


class MLP(nn.Module):
    """Three linear layers of width 128."""

    def __init__(self, channel: int, num_classes: int, im_size: tuple[int, int]):
        super().__init__()
        self.fc_1 = nn.Linear(channel * im_size[0] * im_size[1], 128)
        self.fc_2 = nn.Linear(128, 128)
        self.fc_3 = nn.Linear(128, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc_3(F.relu(self.fc_2(F.relu(self.fc_1(x.flatten(1))))))


class LeNet(nn.Module):
    """Two 5x5 convolutions and three linear layers; one-channel images are padded by 2."""

    def __init__(self, channel: int, num_classes: int, im_size: tuple[int, int]):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channel, 6, 5, padding=2 if channel == 1 else 0), nn.ReLU(), nn.MaxPool2d(2, 2),
            nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2, 2))
        self.fc_1 = nn.Linear(_flat_size(self, self.features, channel, im_size), 120)
        self.fc_2 = nn.Linear(120, 84)
        self.fc_3 = nn.Linear(84, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc_3(F.relu(self.fc_2(F.relu(self.fc_1(self.features(x).flatten(1))))))


class AlexNet(nn.Module):
    """Five convolutions and one linear layer; one-channel images are padded by 4."""

    def __init__(self, channel: int, num_classes: int, im_size: tuple[int, int], normalisation: str = "none"):
        super().__init__()
        layers: list[nn.Module] = []
        inputs = channel
        for width, kernel, pooled in ((128, 5, True), (192, 5, True), (256, 3, False), (192, 3, False),
                                      (192, 3, True)):
            padding = 4 if channel == 1 and not layers else kernel // 2
            layers.append(nn.Conv2d(inputs, width, kernel, padding=padding))
            if NORMALISATIONS[normalisation]:
                layers.append(NORMALISATIONS[normalisation]((width,)))
            layers += [nn.ReLU(), nn.MaxPool2d(2, 2)] if pooled else [nn.ReLU()]
            inputs = width
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(_flat_size(self, self.features, channel, im_size), num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).flatten(1))


class VGG11(nn.Module):
    """VGG configuration A with one linear layer; one-channel images are padded by 3."""

    def __init__(self, channel: int, num_classes: int, im_size: tuple[int, int], normalisation: str = "instance"):
        super().__init__()
        layers: list[nn.Module] = []
        inputs = channel
        for width, pooled in ((64, True), (128, True), (256, False), (256, True), (512, False), (512, True),
                              (512, False), (512, True)):
            padding = 3 if channel == 1 and not layers else 1
            layers += [nn.Conv2d(inputs, width, 3, padding=padding), NORMALISATIONS[normalisation]((width,)), nn.ReLU()]
            layers += [nn.MaxPool2d(2, 2)] if pooled else []
            inputs = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(_flat_size(self, self.features, channel, im_size), num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut. `average_pooling` halves with a pooling instead of a stride."""

    def __init__(self, inputs: int, width: int, stride: int, normalisation: str, average_pooling: bool):
        super().__init__()
        norm = NORMALISATIONS[normalisation]
        halved = stride == 2 and average_pooling
        stride = 1 if average_pooling else stride
        self.conv1 = nn.Conv2d(inputs, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = norm((width,))
        self.pool = nn.AvgPool2d(2, 2) if halved else nn.Identity()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = norm((width,))
        self.shortcut = nn.Sequential()
        if inputs != width:
            layers = [nn.Conv2d(inputs, width, 1, stride=stride, bias=False), norm((width,))]
            if halved:
                layers.insert(1, nn.AvgPool2d(2, 2))
            self.shortcut = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.pool(F.relu(self.bn1(self.conv1(x))))
        return F.relu(self.bn2(self.conv2(inner)) + self.shortcut(x))


class ResNet18(nn.Module):
    """ResNet-18 for small images: a 3x3 first convolution, 4x4 average pooling at the end.

    `average_pooling` (the _AP networks) halves by pooling instead of strides and has no pooling at the end.
    """

    def __init__(self, channel: int, num_classes: int, im_size: tuple[int, int], normalisation: str = "instance",
                 average_pooling: bool = False):
        super().__init__()
        self.conv1 = nn.Conv2d(channel, 64, 3, padding=1, bias=False)
        self.bn1 = NORMALISATIONS[normalisation]((64,))
        inputs = 64
        for k, width in enumerate((64, 128, 256, 512), start=1):
            blocks = [BasicBlock(inputs, width, 1 if k == 1 else 2, normalisation, average_pooling),
                      BasicBlock(width, width, 1, normalisation, average_pooling)]
            setattr(self, f"layer{k}", nn.Sequential(*blocks))
            inputs = width
        self.pool = nn.Identity() if average_pooling else nn.AvgPool2d(4)
        self.classifier = nn.Linear(_flat_size(self, self._features, channel, im_size), num_classes)

    def _features(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return self.pool(self.layer4(self.layer3(self.layer2(self.layer1(x)))))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self._features(x).flatten(1))


@torch.no_grad()
def _flat_size(network: nn.Module, features, channel: int, im_size: tuple[int, int]) -> int:
    """Number of features of one image; RuntimeError or ValueError where it is too small for the layers.

    In evaluation mode, so that batch normalisation's statistics stay as they are.
    """
    network.eval()
    count = features(torch.zeros(1, channel, *im_size)).numel()
    network.train()
    return count


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
NETWORKS = {
    **{name: (ConvNet, settings) for name, settings in CONVNETS.items()},
    "MLP": (MLP, {}),
    "LeNet": (LeNet, {}),
    "AlexNet": (AlexNet, {}),
    "AlexNetBN": (AlexNet, {"normalisation": "batch"}),
    "VGG11": (VGG11, {}),
    "VGG11BN": (VGG11, {"normalisation": "batch"}),
    "ResNet18": (ResNet18, {}),
    "ResNet18BN": (ResNet18, {"normalisation": "batch"}),
    "ResNet18_AP": (ResNet18, {"average_pooling": True}),
    "ResNet18BN_AP": (ResNet18, {"normalisation": "batch", "average_pooling": True}),
}


def check_name(name: str) -> str:
    """The name itself, or a UserError that lists the known ones."""
    if name not in NETWORKS:
        raise UserError(f"unknown network {name!r}; known: {', '.join(NETWORKS)}")
    return name


def has_batch_norm(name: str) -> bool:
    """Whether a ConvNet variant normalises over the images of a batch."""
    return CONVNETS[name].get("normalisation") == "batch"


def get_network(name: str, channel: int, num_classes: int, im_size: int | tuple[int, int],
                seed: int | None = None) -> nn.Module:
    """A freshly initialised network on the CPU in float32.

    im_size: side, or (height, width), in pixels. seed: of the initial weights; the same seed gives the
    same weights whatever happened before, and the global random state stays as it was. None: draw from
    the global state. Raises UserError for an unknown name or images too small for the network.
    """
    build, settings = NETWORKS[check_name(name)]
    height, width = (im_size, im_size) if isinstance(im_size, int) else im_size
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.default_generator.manual_seed(seed)
        try:
            return build(channel, num_classes, (height, width), **settings)
        except (RuntimeError, ValueError):
            raise UserError(f"network {name} does not fit images of {height}x{width}: they are too small for its "
                            "layers; choose another network or larger images") from None
