"""From what a user types to the parts of a federation; the only room besides the commands that knows Hydra."""

from fedgh.config.build import build, build_callbacks, build_federation, build_schedule, quieten
from fedgh.config.compose import CONFIG_DIR, compose, composer, literal, resolve, unresolved
from fedgh.config.logger import build_loggers, in_wandb_sweep, new_wandb_id, wandb_mode
from fedgh.config.stored import parse, reopen, save, to_text, to_values
from fedgh.config.trust import check_parts, foreign
from fedgh.config.validate import validate
from fedgh.config.where import WHERE, apply_where, as_typed, check_outside, is_where, key_of, outside, typed_words
from fedgh.core.errors import did_you_mean

__all__ = [
    "CONFIG_DIR",
    "WHERE",
    "apply_where",
    "as_typed",
    "build",
    "build_callbacks",
    "build_federation",
    "build_loggers",
    "build_schedule",
    "check_outside",
    "check_parts",
    "compose",
    "composer",
    "did_you_mean",
    "foreign",
    "in_wandb_sweep",
    "is_where",
    "key_of",
    "literal",
    "new_wandb_id",
    "outside",
    "parse",
    "quieten",
    "reopen",
    "resolve",
    "save",
    "to_text",
    "to_values",
    "typed_words",
    "unresolved",
    "validate",
    "wandb_mode",
]
