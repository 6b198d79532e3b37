"""Any classifier of torchvision by its name."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from fedgh.core.errors import ConfigurationError
from fedgh.model.base import Model, require_images


class Beheaded(Model):
    """A foreign classifier, cut into what is before its last linear layer and that layer.

    Args:
        network: Its outputs are those of a linear layer, its classifier.
        num_outputs: Width of that layer.
        channels: Of the images that the network takes; grey images repeat their channel where it is 3.
        name: For messages.

    Raises:
        ConfigurationError: If its last linear layer is not of that width.
    """

    def __init__(self, network: nn.Module, num_outputs: int, channels: int, name: str) -> None:
        super().__init__()
        layers = [(path, layer) for path, layer in network.named_modules() if isinstance(layer, nn.Linear)]
        path, head = layers[-1] if layers else ("", None)
        if head is None or head.out_features != num_outputs:
            raise ConfigurationError(
                f"{name} has no linear head of {num_outputs} outputs, which methods that personalise or freeze the "
                "classifier need; choose another, such as model=torchvision model.name=resnet18"
            )
        parent, _, last = path.rpartition(".")
        setattr(network.get_submodule(parent), last, nn.Identity())
        self.body, self.head, self.channels, self.name = network, head, channels, name

    def features(self, x: Tensor) -> Tensor:
        """Map images ``(batch, channels, height, width)`` to what the head takes, ``(batch, feature size)``.

        Raises:
            ConfigurationError: If the network puts out something else, such as a second classifier's outputs.
        """
        found = self.body(x.expand(-1, self.channels, -1, -1) if x.shape[1] == 1 else x)
        if not isinstance(found, Tensor) or found.shape[-1] != self.head.in_features or found.ndim != 2:
            raise ConfigurationError(
                f"{self.name} does not end in its last linear layer; choose another, such as model=torchvision "
                "model.name=resnet18"
            )
        return found


class TorchVision(Beheaded):
    """A model of ``torchvision.models``, made for photographs of 224 pixels; small images leave little of them.

    Args:
        input_shape: Channels (1 or 3), height and width.
        num_outputs: Width of the head, the number of classes.
        name: As ``torchvision.models.get_model`` knows it, such as ``resnet18`` or ``mobilenet_v3_small``.
        weights: Pretrained weights by torchvision's name, such as ``IMAGENET1K_V1`` or ``DEFAULT``, all but the head's;
            fetched once if they are not there. ``None``: PyTorch's random start.

    Raises:
        ConfigurationError: If there is no such model or no such weights, or it has no linear head.
    """

    def __init__(self, input_shape: Sequence[int], num_outputs: int, name: str, weights: str | None) -> None:
        from torchvision import models

        (channels, _, _), num_outputs = require_images(input_shape, num_outputs, "torchvision")
        if channels not in (1, 3):
            raise ConfigurationError(f"model=torchvision needs images of 1 or 3 channels, got {channels}.")
        try:
            network = models.get_model(name, weights=None, num_classes=num_outputs)
            if weights is not None:
                there = models.get_model_weights(name)[weights].get_state_dict(progress=False, check_hash=True)
                own = network.state_dict()
                fits = {key: value for key, value in there.items() if key in own and own[key].shape == value.shape}
                network.load_state_dict(fits, strict=False)
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise ConfigurationError(
                f"torchvision has no model.name={name} with model.weights={weights} here "
                f"({' '.join(str(error).split())}); see torchvision.models.list_models(module=torchvision.models)"
            ) from error
        super().__init__(network, num_outputs, 3, f"model=torchvision model.name={name}")
