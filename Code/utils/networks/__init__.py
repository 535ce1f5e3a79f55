"""Networks: `get_network` builds one by its name."""

from .models import CONVNETS, NETWORKS, ConvNet, check_name, get_network, has_batch_norm

__all__ = ["CONVNETS", "NETWORKS", "ConvNet", "check_name", "get_network", "has_batch_norm"]
