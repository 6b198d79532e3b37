"""From what a user types to the parts of a federation; the only room besides the commands that knows Hydra."""

from fedgh.config.build import build, build_callbacks, build_federation, build_schedule, quieten
from fedgh.config.compose import CONFIG_DIR, compose, composer, parse, resolve
from fedgh.config.logger import build_loggers, in_wandb_sweep, new_wandb_id, wandb_mode
from fedgh.config.validate import did_you_mean, validate

__all__ = [
    "CONFIG_DIR",
    "build",
    "build_callbacks",
    "build_federation",
    "build_loggers",
    "build_schedule",
    "compose",
    "composer",
    "did_you_mean",
    "in_wandb_sweep",
    "new_wandb_id",
    "parse",
    "quieten",
    "resolve",
    "validate",
    "wandb_mode",
]
