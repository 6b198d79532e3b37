"""What a callback needs of a run, checked before the first round."""

from __future__ import annotations

from fedgh.core.errors import ConfigurationError
from fedgh.core.types import ServerState


def require_one_model(server: ServerState, callback: str) -> None:
    """Refuse a run with several global models, of which a callback would see only the first.

    Raises:
        ConfigurationError: If there are several.
    """
    if server.siblings:
        raise ConfigurationError(
            f"callback={callback} looks at one global model, and this algorithm trains {len(server.models)}; leave it "
            "out (callback=default)"
        )
