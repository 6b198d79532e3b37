"""What was typed, where Hydra cannot read or compose it: one line with what to type instead."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException, MissingConfigException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedgh.config.compose import CONFIG_DIR, composer, one_line, unresolved
from fedgh.config.validate import FIXED, GROUPS
from fedgh.config.where import PATHS
from fedgh.core.command import command, quoted
from fedgh.core.errors import ConfigurationError, did_you_mean

FOLDERS = ("hydra.run.dir", "hydra.sweep.dir")
NO_KEY = re.compile(r"Could not (?:override|append to config\. Could not resolve the key) '([^']+)'")
NO_REFERENCE = "choose another name, without ${, or close it: ${...} stands for another key"
NOTHING_CHOSEN = {"logger": ", type logger=csv for none", "callback": ", type callback=none for none"}


def check_typed(arguments: Sequence[str]) -> None:
    """Look at a command line before Hydra does.

    Args:
        arguments: Without the command itself.

    Raises:
        ConfigurationError: For what is no ``key=value``, or has two values where there is no sweep.
    """
    known, unknown = get_args_parser().parse_known_args(arguments)
    if unknown:
        word = unknown[0].lstrip("-")
        after = [*arguments[list(arguments).index(unknown[0]) + 1 :], "<value>"][0]
        value = word if "=" in word else f"{word}={after}"
        raise ConfigurationError(f"there is no option {unknown[0]}; settings have no dashes, type {value}")
    parser, parsed = OverridesParser.create(), list[Override]()
    for place, text in enumerate(known.overrides):
        try:
            parsed.append(parser.parse_override(text))
        except HydraException as error:
            following = known.overrides[place + 1 :]
            raise ConfigurationError(_instead(text, following, parser, str(error))) from None
    sweeps = known.multirun or any(o.key_or_group == "hydra.mode" for o in parsed)
    for override in parsed:
        if override.is_sweep_override():
            if not sweeps:
                raise ConfigurationError(_one_value(override))
        elif override.type is not OverrideType.DEL:
            _check_folder(override)
            _check_choice(override)


def explain(error: BaseException, config_name: str) -> str:
    """Return what to say about a command line that Hydra could read, but not compose."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options is not None:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        return _no_such_choice(group or "config", choice, list(error.options))
    text, cause = str(error), str(error.__cause__ or "")
    if unclosed := re.search(r"no viable alternative at input '(\$\{[^']*)", f"{text}\n{cause}"):
        return f"{unclosed[1]} opens a reference that nothing closes, in a setting or a folder's name; {NO_REFERENCE}"
    if isinstance(error, OmegaConfBaseException) and "nterpolation" in text:
        return unresolved(error)
    if missing := re.search(r"Could not load '(\w+)/([^']+)'", text):  # one of a list of choices
        return _no_such_choice(missing[1], missing[2], options_of(missing[1]))
    if misspelt := NO_KEY.search(text):
        return no_such_key(misspelt[1], config_name)
    if appended := re.search(r"An item is already at '([^']+)'", text):
        return f"there is a key {appended[1]} already; type {appended[1]}=<value> without the +"
    if deleted := re.search(r"Could not delete[^']*'([^']+)'", text):
        return f"~{deleted[1]}: {no_such_key(deleted[1], config_name)}"
    return one_line(text if cause in text else f"{text}\n{cause}")


def no_such_key(key: str, config_name: str) -> str:
    """Return what to say about a key that the composed config does not have."""
    group, _, last = key.rpartition(".")
    if choices := choices_with(key):
        group = key.partition(".")[0]
        return (
            f"the chosen {group} has no {key}, which belongs to {group}={', '.join(choices)}; choose that as well, or "
            "leave the key out"
        )
    known = [name for name in known_keys(config_name) if name.removeprefix("trainer.") not in FIXED]
    by_tail: dict[str, list[str]] = {}
    for name in known:
        by_tail.setdefault(name.rpartition(".")[2], []).append(name)
    near = difflib.get_close_matches(last, by_tail, n=1, cutoff=0.6)
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6 if group else 0.8)
    hints = close or (by_tail[near[0]][:3] if near else [])
    if not hints and not group and config_name == "train":
        hints = [
            f"{part}.{key}, with {part}={choices[0]}" for part in GROUPS if (choices := choices_with(f"{part}.{key}"))
        ]
    hint = f" (did you mean {' or '.join(hints)}?)" if hints else ""
    return f"there is no key {key}{hint}; `--cfg job` prints every key"


def _no_such_choice(group: str, choice: str, options: list[str]) -> str:
    there_are = f"; there are: {', '.join(options)}"
    return f"there is no {group}={choice}{did_you_mean(choice.lower(), options) or there_are}"


def options_of(group: str) -> list[str]:
    """Return the choices of a group, sorted; none if there is no such group."""
    named = re.fullmatch(r"[\w/]+", group) is not None
    return sorted(path.stem for path in Path(CONFIG_DIR, group).glob("*.yaml")) if named else []


def choices_with(key: str) -> list[str]:
    """Return the choices of a key's own group that have the key, sorted."""
    group, _, rest = key.partition(".")
    return [choice for choice in options_of(group) if rest and rest in _keys_of(group, choice)]


def _keys_of(group: str, choice: str) -> set[str]:
    """Return the dotted keys in a choice's file and those that it starts from; composing all of them takes seconds."""
    path = Path(CONFIG_DIR, group, f"{choice}.yaml")
    tree: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False) if path.is_file() else {}
    bases = tree.pop("defaults", []) if isinstance(tree, dict) else []
    inherited = [_keys_of(group, base) for base in bases if isinstance(base, str) and base != "_self_"]
    return {*_dotted(tree, "")}.union(*inherited)


def known_keys(config_name: str) -> list[str]:
    """Return every key of a root config with its default choices, dotted."""
    with composer():
        return _dotted(OmegaConf.to_container(compose(config_name), resolve=False), "")


def _dotted(tree: Any, prefix: str) -> list[str]:
    if not isinstance(tree, dict):
        return []
    return [name for key, value in tree.items() for name in (f"{prefix}{key}", *_dotted(value, f"{prefix}{key}."))]


def _instead(text: str, following: Sequence[str], parser: OverridesParser, reason: str) -> str:
    """Return what to type instead of one argument that is no override."""
    key, equals, value = text.partition("=")
    if key in FOLDERS and _opens_a_reference(value):
        return f"{text}: Hydra makes no folder of such a name; {NO_REFERENCE}"
    if not equals:
        words = [text, *following[:2]]
        if words[1:2] and ("=" not in words[1] or words[1].startswith("=")):
            spread = words[: 3 if words[1] == "=" else 2]
            return (
                f"{' '.join(spread)} is no setting; type {text}={spread[-1].lstrip('=') or '<value>'}, without spaces"
            )
        key, _, value = text.partition(":")
        return f"{text!r} is no setting; type {key or '<key>'}={value or '<value>'}"
    for end in range(1, len(following) + 1) if re.search(r"[\[({]", text) else ():
        whole = " ".join((text, *following[:end]))
        if _reads(whole, parser):
            return f"the shell has cut {whole} at its spaces; type {shlex.quote(whole)}"
    trials = [f"{key.strip()}={value.strip().lstrip('=').strip()}", f"{key.strip()}={_quoted_parts(value)}"]
    for trial in [*trials, f"{key.strip()}={quoted(value)}"]:
        if _reads(trial, parser):
            why = "" if trial == trials[0] else ": settings want quotes of their own around umlauts, spaces and signs"
            return f"{text} cannot be read{why}; type {shlex.quote(trial)}"
    return f"{text} cannot be read as key=value ({reason.splitlines()[0]}); a key is like algorithm.optimizer.lr"


def _quoted_parts(value: str) -> str:
    """Return a value with quotes around it, or around the items of a flat list."""
    value = value.strip()
    if len(value) > 1 and value[0] == "[" and value[-1] == "]" and not re.search(r"[\[\]{}'\"]", value[1:-1]):
        return f"[{','.join(_quoted_parts(item) for item in value[1:-1].split(','))}]"
    return value if re.fullmatch(r"[\w./-]+", value, re.ASCII) else quoted(value)


def _reads(text: str, parser: OverridesParser) -> bool:
    try:
        parser.parse_override(text)
    except HydraException:
        return False
    return True


def _one_value(override: Override) -> str:
    key, value = override.get_key_element(), (override.input_line or "").partition("=")[2]
    decimal = f"{key}={value.replace(',', '.')} for a decimal number, " if re.fullmatch(r"-?\d+,\d+", value) else ""
    return (
        f"{override.input_line} is more than one value; type {decimal}{key}=[{value}] for a list, or add -m for a sweep"
    )


def _check_folder(override: Override) -> None:
    """Refuse an empty value, which is what a shell makes of an unset variable, and a folder that is no text."""
    key, value = override.get_key_element().lstrip("+"), override.value()
    folder = key.startswith("paths.") or key in FOLDERS
    if value == "???":
        there = f"; a folder of that name is {command(f'{key}=./???')}" if folder or key in PATHS else ""
        raise ConfigurationError(f"{key}=??? stands for no value; type {key}=<value> or leave it out{there}")
    if value == "":
        raise ConfigurationError(f"{key}= has no value (an unset shell variable?); type {key}=<value> or leave it out")
    if key in FOLDERS and isinstance(value, str) and _opens_a_reference(value):
        raise ConfigurationError(f"{override.input_line}: Hydra makes no folder of such a name; {NO_REFERENCE}")
    if folder and not isinstance(value, str):
        hint = f"./{value}" if isinstance(value, int | float) and not isinstance(value, bool) else "<folder>"
        raise ConfigurationError(f"{override.input_line} names no folder; type {key}={hint}")


def _opens_a_reference(text: str) -> bool:
    """Tell whether a text has ``${`` where OmegaConf's grammar has no use for it."""
    try:
        OmegaConf.create({"key": text.replace("\\${", "${")})
    except OmegaConfBaseException:
        return True
    return False


def _check_choice(override: Override) -> None:
    """Refuse to leave a group without a choice, to choose by a mapping, and several of what there is one of."""
    group, value = override.key_or_group, override.value()
    options = options_of(group)
    if not options or override.type is not OverrideType.CHANGE:
        return
    if group == "lr_schedule" and override.package is None:
        raise ConfigurationError(
            f"{override.input_line}: whose learning rate? type lr_schedule@client_lr_schedule={value}, or "
            f"lr_schedule@server_lr_schedule={value}"
        )
    many = group not in GROUPS
    if not isinstance(value, (str, list) if many else str):
        none = NOTHING_CHOSEN.get(group, "")
        raise ConfigurationError(
            f"{override.input_line} is no choice of {group}; leave it out{none}, or type {group}=<choice>; "
            f"there are: {', '.join(options)}"
        )
