"""From plain values to checked settings: every type and limit, and a hint for every name that is not there."""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from difflib import get_close_matches
from glob import glob
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from dreamer_torchrl.agents.size import Size
from dreamer_torchrl.config.schema import Settings, WandbSettings
from dreamer_torchrl.envs.registry import UnknownEnvironment, check_env
from dreamer_torchrl.learners.hyperparameters import Hyperparameters
from dreamer_torchrl.record.metrics import missing_tensorboard

LEAST = {
    **dict.fromkeys(("total_steps", "env.num_envs", "env.action_repeat", "env.frames_per_action"), 1),
    **dict.fromkeys(("replay.capacity", "replay.batch", "checkpoint.keep", "threads"), 1),
    "replay.length": 2,
    **dict.fromkeys([f"size.{field.name}" for field in fields(Size)], 1),
    **dict.fromkeys(("eval.episodes", "eval.num_envs", "eval.keep_videos", "learner.imagination_length"), 1),
    **dict.fromkeys(("seed", "prefill", "eval.every", "train_ratio", "learner.warmup", "learner.context"), 0),
    **dict.fromkeys(("learner.learning_rate", "checkpoint.every", "log.every", "unimix", "actor_unimix"), 0),
    **dict.fromkeys(("learner.free_nats", "learner.return_lambda", "learner.replay_lambda"), 0),
    **dict.fromkeys(("learner.slow_rate", "learner.return_rate"), 0),
    **dict.fromkeys([f"learner.{field.name}" for field in fields(Hyperparameters) if field.name.endswith("_scale")], 0),
    **dict.fromkeys(("learner.horizon", "env.step_timeout"), 1),
    "eval.dream": 0,
}
MOST = {
    **dict.fromkeys(("unimix", "actor_unimix", "learner.return_lambda", "learner.replay_lambda"), 1),
    **dict.fromkeys(("learner.slow_rate", "learner.return_rate", "learner.context"), 1),
    "seed": 2**63 - 1,
    "size.classes": 256,  # kept as bytes
}
IMAGE_BLOCKS = 8
"""Into so many blocks the decoder of images splits the belief."""

LONGEST_TAG, LONGEST_LABEL = 64, 128
"""Characters that W&B takes."""

GPU_DEVICES = ("/dev/nvidia*", "/dev/dxg", "/dev/kfd")
"""What Linux shows where there is a GPU: NVIDIA's, the same under Windows, AMD's."""

ABOVE_ZERO = ("learner.clip", "learner.eps", "learner.return_limit")
ENDLESS = ("learner.clip", "checkpoint.every", "log.every")
"""What infinity switches off."""

KINDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a word",
    dict: "entries, such as {first: 1, second: two}",
}


class ConfigError(ValueError):
    """Something in the words of a command is wrong; the message says what and how to mend it."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint such as `` Did you mean 'seed'?``, by the whole name or its last part; empty if nothing is near.

    Example:
        >>> nearest("env.num_env", ["seed", "env.num_envs"])
        " Did you mean 'env.num_envs'?"
    """
    known = sorted(known)
    by_last = {other.rpartition(".")[2]: other for other in known}
    near = get_close_matches(name, known, n=1)
    near = near or [by_last[last] for last in get_close_matches(name.rpartition(".")[2], by_last, n=1)]
    return f" Did you mean {near[0]!r}?" if near else ""


def build(kind: type, values: Mapping[str, Any], path: str = "") -> Any:
    """A dataclass from plain values, each checked against its type."""
    hints = get_type_hints(kind)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise ConfigError(f"There is no setting {path + unknown[0]!r}.{nearest(unknown[0], hints)}")
    missing = sorted({field.name for field in fields(kind) if _needed(field)} - set(values))
    if missing:
        raise ConfigError(f"There is no {path + missing[0]!r} in the configuration.")
    return kind(**{key: typed(hints[key], value, path + key) for key, value in values.items()})


def typed(hint: Any, value: Any, path: str) -> Any:
    """A value as its type wants it; ``path`` is how the user calls it."""
    origin, arguments = get_origin(hint), get_args(hint)
    if is_dataclass(hint):
        if not isinstance(value, Mapping):
            entry = f"{path}.{fields(hint)[0].name}"
            raise ConfigError(
                f"{path}={as_word(value)} replaces a whole section: set one of its entries, such as {entry}."
            )
        return build(hint, value, path + ".")
    if origin in (Union, UnionType):
        return None if value is None else typed(arguments[0], value, path)
    if origin is Literal:
        if value not in arguments:
            hint = nearest(str(value), arguments)
            raise ConfigError(f"{path}={as_word(value)} is impossible.{hint} Possible: {', '.join(arguments)}.")
        return value
    if origin is tuple and arguments[-1] is ...:
        if not isinstance(value, list):
            raise ConfigError(f"{path}={as_word(value)} should be a list, such as [first, second].")
        return tuple(typed(arguments[0], item, path) for item in value)
    if origin is tuple:
        if not isinstance(value, list) or len(value) != len(arguments):
            example = ", ".join(["0.5"] * len(arguments))
            raise ConfigError(f"{path}={as_word(value)} should be {len(arguments)} numbers, such as [{example}].")
        return tuple(typed(inner, item, path) for inner, item in zip(arguments, value, strict=True))
    if origin is not None:
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    elif hint is int and isinstance(value, float) and value.is_integer():
        value = int(value)  # 1e6
    elif hint is str and isinstance(value, int | float):
        value = as_word(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool) or value != value:
        written = repr(value) if isinstance(value, str) else as_word(value)
        raise ConfigError(f"{path}={written} should be {KINDS[hint]}.")
    return value


def as_word(value: Any) -> str:
    """A value as it is written on a command line.

    Example:
        >>> as_word(None), as_word(True), as_word([1, "two"])
        ('null', 'true', '[1, two]')
    """
    if isinstance(value, list | tuple):
        return f"[{', '.join(as_word(item) for item in value)}]"
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)


def check(settings: Settings) -> None:
    """Refuse values that cannot be, each by itself and together."""
    values = leaves(as_plain(settings))
    for limits, wrong, word in ((LEAST, operator.lt, "at least"), (MOST, operator.gt, "at most")):
        for key, limit in limits.items():
            if values.get(key) is not None and wrong(values[key], limit):
                raise ConfigError(f"{key}={values[key]} is impossible: give {word} {limit}.")
    for key in ABOVE_ZERO:
        if values[key] <= 0:
            raise ConfigError(f"{key}={values[key]} is impossible: give more than 0.")
    for key, value in values.items():
        if value == math.inf and key not in ENDLESS:
            raise ConfigError(f"{key}=inf is impossible: give a number that ends.")
    _check_pairs(settings.learner)
    _check_sizes(settings)
    _check_device(settings.device)
    _check_labels(settings.wandb)
    options = settings.env.options
    if settings.eval.arguments and "arguments" not in options:
        raise ConfigError("eval.arguments is impossible: this environment takes no arguments, as env=gym does.")
    missing = missing_tensorboard() if settings.log.tensorboard else None
    if missing:
        raise ConfigError(missing)
    try:
        check_env(settings.env.family, options)
        if settings.eval.arguments:
            check_env(settings.env.family, {**options, "arguments": settings.eval.arguments})
    except UnknownEnvironment as error:
        raise ConfigError(str(error)) from None


def _check_pairs(learner: Hyperparameters) -> None:
    if not all(0 <= beta < 1 for beta in learner.betas):
        raise ConfigError(f"learner.betas={as_word(learner.betas)} is impossible: both lie in 0 to 1, without 1.")
    low, high = learner.return_percentiles
    if not 0 <= low < high <= 100:
        pair = as_word(learner.return_percentiles)
        raise ConfigError(f"learner.return_percentiles={pair} is impossible: give a lower and a higher one, 0 to 100.")


def _check_sizes(settings: Settings) -> None:
    """What the networks and the replay refuse, said before they are there."""
    size, replay, env = settings.size, settings.replay, settings.env
    if size.belief % size.blocks or size.belief % IMAGE_BLOCKS:
        multiple = math.lcm(size.blocks, IMAGE_BLOCKS)
        raise ConfigError(f"size.belief={size.belief} does not split into blocks: give a multiple of {multiple}.")
    if size.depth % 2:
        raise ConfigError(f"size.depth={size.depth} is impossible: give an even number.")
    image = env.options.get("image", env.family == "atari") and env.options.get("size")
    if image and (image % 16 or not 48 <= image <= 256):
        raise ConfigError(f"env.size={image} is impossible: images have a side of 48, 64, 80 and so on up to 256.")
    needed = (replay.length + settings.learner.context) * env.num_envs
    if replay.capacity < needed:
        raise ConfigError(
            f"replay.capacity={replay.capacity} is less than one sequence of each environment: give at least {needed}."
        )


def _check_labels(wandb: WandbSettings) -> None:
    """What W&B itself would refuse, when the run has long begun."""
    for tag in wandb.tags or ():
        if not 1 <= len(tag) <= LONGEST_TAG:
            raise ConfigError(f"wandb.tags has {tag!r}: a tag has 1 to {LONGEST_TAG} characters.")
    for key, label in (("name", wandb.name), ("group", wandb.group)):
        if label is not None and not 1 <= len(label) <= LONGEST_LABEL:
            raise ConfigError(f"wandb.{key}={label} is impossible: give 1 to {LONGEST_LABEL} characters.")


def _check_device(device: str) -> None:
    kind, _, number = device.partition(":")
    if device not in ("auto", "cpu", "cuda", "mps") and not (kind == "cuda" and number.isdigit()):
        raise ConfigError(f"device={device} is impossible: there are auto, cpu, mps, cuda, cuda:0, cuda:1 and so on.")
    if device == "mps" and sys.platform != "darwin":
        raise ConfigError("device=mps is a Mac's, and this machine is none: leave it at auto.")
    if kind == "cuda" and sys.platform == "linux" and not any(glob(pattern) for pattern in GPU_DEVICES):
        raise ConfigError(f"device={device}, but this machine has no GPU: leave it at auto.")


def _needed(entry: Field) -> bool:
    return entry.default is MISSING and entry.default_factory is MISSING


def as_plain(value: Any) -> Any:
    """Settings as dictionaries, lists, words and numbers, which any file format can hold."""
    if is_dataclass(value):
        return {field.name: as_plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: as_plain(item) for key, item in value.items()}
    return [as_plain(item) for item in value] if isinstance(value, list | tuple) else value


def leaves(values: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Dotted names of all entries to their values."""
    flat = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= leaves(value, f"{path}{key}.")
        else:
            flat[f"{path}{key}"] = value
    return flat
