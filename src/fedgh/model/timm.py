"""Any classifier of timm by its name."""

from __future__ import annotations

import re
from collections.abc import Sequence

from fedgh.core.errors import ConfigurationError
from fedgh.model.base import require_images
from fedgh.model.torchvision import Beheaded


class Timm(Beheaded):
    """A model of timm.

    Args:
        input_shape: Channels, height and width; some models take images of one size only.
        num_outputs: Width of the head, the number of classes.
        name: As ``timm.create_model`` knows it, such as ``resnet18`` or ``vit_tiny_patch16_224``.
        pretrained: Whether to start from timm's weights, all but the head's; fetched once if they are not there.

    Raises:
        ConfigurationError: If timm is not installed, has no such model, or the model has no linear head.
    """

    def __init__(self, input_shape: Sequence[int], num_outputs: int, name: str, pretrained: bool) -> None:
        (channels, _, _), num_outputs = require_images(input_shape, num_outputs, "timm")
        try:
            import timm
        except ImportError as error:
            raise ConfigurationError("model=timm needs timm: pip install 'fedgh[timm]'") from error
        if not re.fullmatch(r"[\w.]+", name):  # hf-hub:<anybody's model> would fetch what a stored config names
            raise ConfigurationError(f"model.name must be the plain name of a model of timm, got {name!r}.")
        try:
            network = timm.create_model(name, pretrained=pretrained, num_classes=num_outputs, in_chans=channels)
        except Exception as error:  # whatever its registry and its hub raise
            reason = " ".join(str(error).split())[:200]
            raise ConfigurationError(f"timm cannot give model.name={name} here: {reason}") from error
        super().__init__(network, num_outputs, channels, f"model=timm model.name={name}")
