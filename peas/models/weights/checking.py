"""Types, ranges and shapes of a checkpoint's fields, checked before anything is built from it.

A file of unknown origin may hold anything. `reading` executes nothing in it; these checks keep its
numbers from allocating gigabytes, ending in a traceback or writing beyond a buffer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from packaging.version import InvalidVersion, Version
from torch import Tensor
from torch.optim import Adam, Optimizer

from peas.errors import CheckpointError, ConfigError, PeasError
from peas.models.patches import Pair, grid_shape
from peas.models.vit import SIZES
from peas.utils import migration

MOST = 2**20
"""Frames, mel bins or steps that a model may have along one axis: three hours of 10 ms."""
AGAIN = "the file is damaged or was changed: get it again"

_Rule = tuple[Callable[[Any], bool], str]


def _one_of(*values: object) -> _Rule:
    return (
        lambda value: isinstance(value, type(values[0])) and value in values,
        f"one of {', '.join(map(str, values))}",
    )


def _integer(value: Any, least: int = 1, most: int = MOST) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _number(value: Any) -> bool:
    # An integer of 400 digits is no float.
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return plain and -1e300 < value < 1e300


def _pair(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(map(_integer, value))


def _names(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)


def _spec(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and isinstance(value.get("class_path"), str)
        and isinstance(value.get("init_args"), Mapping)
    )


def _specs(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(name, str) and _spec(part) for name, part in value.items()
    )


_PART_SPEC = "a class_path and init_args"
HYPER_PARAMETERS: dict[str, _Rule] = {
    "labels": (_names, "a list of names"),
    "multi_label": (lambda value: isinstance(value, bool), "true or false"),
    "loss": _one_of("ce", "bce"),
    "encoder": (_spec, _PART_SPEC),
    "front_end": (_spec, _PART_SPEC),
    "recipe": (_spec, _PART_SPEC),
    "masking": (_spec, _PART_SPEC),
    "eval_masking": (_spec, _PART_SPEC),
    "augmentation": (lambda value: isinstance(value, Mapping), "a table"),
    "objectives": (_specs, f"names, each with {_PART_SPEC}"),
    "objective_fingerprints": (
        lambda value: (
            isinstance(value, Mapping) and all(isinstance(part, Mapping) for part in value.values())
        ),
        "a table of tables",
    ),
}
"""Settings that decide what is built from a checkpoint; each may be null, or absent."""

PARTS: dict[str, dict[str, _Rule]] = {
    "encoder": {
        "size": (lambda value: isinstance(value, str) and value in SIZES, "the name of a size"),
        "patch": (_pair, "two positive integers"),
        "stride": (_pair, "two positive integers"),
        "pooling": _one_of("mean", "cls"),
        "drop_path": (lambda value: _number(value) and 0 <= value < 1, "a number from 0 to 1"),
    },
    "front_end": {
        "mean": (_number, "a finite number"),
        "std": (lambda value: _number(value) and value > 0, "a finite number above 0"),
        "frames": (_integer, f"an integer from 1 to {MOST}"),
        "channels": _one_of("mean", "first"),
        "rate": (lambda value: _integer(value, 1, 10**6), "an integer from 1 to 1000000"),
        "n_mels": (lambda value: _integer(value, 1, 4096), "an integer from 1 to 4096"),
    },
    "recipe": {"lr": (_number, "a finite number")},
}
"""The same of the parts of `peas`, whose settings have these names."""

_COUNTS = ("epoch", "global_step", "skipped_steps")
_ADAM_KINDS = {"amsgrad", "maximize", "differentiable"}
"""Options of Adam that no recipe of `peas` sets, and that need other moments."""
_MOMENTS = {"exp_avg", "exp_avg_sq"}
"""Of Adam; a recipe of the user's own may have another optimiser, with its own moments."""
_TABLES: dict[str, type] = {
    "hyper_parameters": Mapping,
    "loops": Mapping,
    "callbacks": Mapping,
    "lr_schedulers": list,
    "optimizer_states": list,
}


def check_run(content: dict[str, Any], where: str) -> None:
    """Refuse a run's checkpoint with a field of the wrong type, range or shape.

    Settings of earlier releases are migrated first. Absent fields are no error here: each command
    checks what it needs.

    Args:
        content: From `read_state`.
        where: The file, for errors.

    Raises:
        CheckpointError: It names the field.
    """
    for key, kind in _TABLES.items():
        if key in content and not isinstance(content[key], kind):
            raise _invalid(where, key, content[key], "a list" if kind is list else "a table")
    for key in _COUNTS:
        if key in content and not _integer(content[key], 0, 2**53):
            raise _invalid(where, key, content[key], "a count")
    try:
        with malformed(where):
            migration.checkpoint(content)
    except ConfigError as error:
        # Its keys are the file's.
        raise CheckpointError(f"{where}: hyper_parameters: {error}") from error
    version = content.get("pytorch-lightning_version", "2.6.6")
    try:
        Version(version)
    except (InvalidVersion, TypeError):
        raise _invalid(where, "pytorch-lightning_version", version, "a version") from None
    settings = content.get("hyper_parameters", {})
    for key, (fits, words) in HYPER_PARAMETERS.items():
        value = settings.get(key)
        if value is not None and not fits(value):
            raise _invalid(where, f"hyper_parameters: {key}", value, words)
    for name, rules in PARTS.items():
        spec = settings.get(name) or {}
        if not str(spec.get("class_path", "")).startswith("peas."):
            continue
        for key, (fits, words) in rules.items():
            value = spec["init_args"].get(key)
            if value is not None and not fits(value):
                raise _invalid(where, f"hyper_parameters: {name}.init_args.{key}", value, words)
    for part in ("state_dict", "current_model_state"):
        if part in content:
            check_weights(content[part], f"{where}: {part}", named=True)
    for number, state in enumerate(content.get("optimizer_states", [])):
        _check_optimizer(state, f"{where}: optimizer_states[{number}]")
    if isinstance(content.get("state_dict"), Mapping):
        _check_model(content["state_dict"], settings, where)


def check_weights(state: object, where: str, *, named: bool = False) -> None:
    """Refuse tensors that cannot be weights.

    Args:
        state: Values by name; those that are no tensors are accepted, unless `named`.
        where: The file and the part of it, for errors.
        named: Whether there must be nothing but tensors with text keys.

    Raises:
        CheckpointError: One holds NaN or infinity, or claims more elements than the file has.
    """
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{where} is a {type(state).__name__}, not tensors by name; {AGAIN}")
    for key, value in state.items():
        if isinstance(value, Tensor):
            require_stored(value, f"{where}: {key}")
            if value.is_floating_point() and not _finite(value):
                raise CheckpointError(
                    f"{where}: {key} holds NaN or infinity, so the model cannot be used: "
                    "take an earlier checkpoint, or get the file again"
                )
        elif named:
            raise CheckpointError(f"{where}: {key} is a {type(value).__name__}; {AGAIN}")


def _finite(tensor: Tensor) -> bool:
    try:
        # Eight-bit types have no such test, and some types no numbers.
        return bool((tensor.float() if tensor.element_size() == 1 else tensor).isfinite().all())
    except (NotImplementedError, RuntimeError):
        return False


def require_stored(tensor: Tensor, where: str) -> None:
    """Refuse a tensor that is larger than its storage, which any use would allocate.

    Raises:
        CheckpointError: It is, or is of a layout that no weights have.
    """
    plain = tensor.layout == torch.strided and not tensor.is_meta and not tensor.is_quantized
    size = tensor.numel() * tensor.element_size()
    if not plain or size > tensor.untyped_storage().nbytes():
        raise CheckpointError(
            f"{where} claims shape {list(tensor.shape)} without its bytes; {AGAIN}"
        )


def check_geometry(state: Mapping[str, Any], where: str, patch: Pair | None = None) -> None:
    """Refuse our own model's state whose `geometry` and tables contradict each other.

    Args:
        state: Tensors of a model, under the keys of its `state_dict`.
        where: The file, for errors.
        patch: Height and width of a patch; None reads them from the kernel.

    Raises:
        CheckpointError: It does.
    """
    for root in ("decoder.blocks.", "decoder_blocks."):
        indices = {key[len(root) :].split(".")[0] for key in state if key.startswith(root)}
        if indices != {str(index) for index in range(len(indices))}:
            raise CheckpointError(f"{where}: the numbers of {root}* have gaps; {AGAIN}")
    geometry = state.get("geometry")
    if geometry is None:
        return
    table, kernel = state.get("encoder.pos_embed"), state.get("encoder.patch_embed.proj.weight")
    is_mae = "encoder.dist_token" not in state
    expected = 9 if is_mae else 6
    numbers = (
        geometry.tolist()
        if isinstance(geometry, Tensor) and geometry.shape == (expected,)
        else None
    )
    if numbers is None or geometry.dtype != torch.int64:
        raise _invalid(where, "geometry", geometry, f"{expected} integers")
    least = [1] * 4 + ([0] * 5 if is_mae else [1] * 2)
    if not all(low <= value <= MOST for low, value in zip(least, numbers, strict=True)):
        raise _invalid(where, "geometry", numbers, f"positive, and at most {MOST}")
    if table is None or kernel is None:
        return
    if table.ndim != 3 or kernel.ndim != 4:
        raise _invalid(where, "encoder.pos_embed", list(table.shape), "[1, N, D]")
    high, wide = kernel.shape[2:]
    patch = patch or ((wide, high) if is_mae else (high, wide))
    special = 1 if is_mae else 2
    sides = {"encoder.pos_embed": (numbers[0], numbers[1], (numbers[2], numbers[3]))}
    if not is_mae:
        sides["pretrain_pos_embed"] = (numbers[4], numbers[5], patch)
    for key, (frames, mels, stride) in sides.items():
        have = state.get(key)
        if have is None:
            continue
        with malformed(where):
            count = special + math.prod(grid_shape(frames, mels, patch, stride))
        if list(have.shape) != [1, count, table.shape[2]]:
            raise CheckpointError(
                f"{where}: {key} has shape {list(have.shape)}, but by the file's own geometry it "
                f"should be {[1, count, table.shape[2]]}; {AGAIN}"
            )


def check_moments(optimizers: Iterable[Optimizer], where: str) -> None:
    """Refuse an optimizer whose restored moments have not the shapes of their weights.

    A fused step would read and write beyond them; other optimisers check shapes themselves.

    Raises:
        CheckpointError: One has another shape, or is missing.
    """
    for optimizer in optimizers:
        adam = isinstance(optimizer, Adam)
        if not adam and not any(group.get("fused") for group in optimizer.param_groups):
            continue
        for group in optimizer.param_groups:
            for key in _ADAM_KINDS & set(optimizer.defaults) if adam else ():
                if group.get(key) != optimizer.defaults[key]:
                    raise _invalid(
                        f"{where}: optimizer_states",
                        key,
                        group.get(key),
                        f"{optimizer.defaults[key]}",
                    )
        for weight, moments in optimizer.state.items():
            if missing := {"step", *_MOMENTS} - set(moments) if moments and adam else set():
                raise CheckpointError(
                    f"{where}: optimizer_states: {min(missing)} of a weight is missing; {AGAIN}"
                )
            for key, moment in moments.items():
                tensor = isinstance(moment, Tensor)
                # Only the number of steps is a scalar.
                shape = torch.Size([]) if key == "step" else weight.shape
                if tensor and moment.shape != shape:
                    raise CheckpointError(
                        f"{where}: optimizer_states: {key} has shape {list(moment.shape)} and its "
                        f"weight {list(weight.shape)}; {AGAIN}"
                    )


@contextmanager
def malformed(where: str) -> Iterator[None]:
    """Turn any failure on a malformed file into one error.

    Args:
        where: The file.

    Raises:
        CheckpointError: Something failed.
    """
    try:
        yield
    except PeasError:
        raise
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        LookupError,
        MemoryError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        lines = (str(error).strip() or type(error).__name__).splitlines()
        # torch's first line names the class of the module alone.
        text = " ".join(line.strip() for line in lines[:2])[:300]
        raise CheckpointError(
            f"{where}: its parts do not fit together ({text}); use the file of the run that the "
            "settings belong to, or get it again"
        ) from error


def _check_optimizer(state: object, where: str) -> None:
    groups = state.get("param_groups") if isinstance(state, Mapping) else None
    states = state.get("state") if isinstance(state, Mapping) else None
    if not isinstance(groups, list) or not isinstance(states, Mapping):
        raise CheckpointError(f"{where} is no optimizer's state; {AGAIN}")
    for group in groups:
        numbers = group.get("params") if isinstance(group, Mapping) else None
        if not isinstance(numbers, list) or not all(_integer(n, 0) for n in numbers):
            raise CheckpointError(f"{where}: param_groups names no weights; {AGAIN}")
    for number, moments in states.items():
        check_weights(moments, f"{where}: state[{number}]")
        shapes = {tuple(m.shape) for m in moments.values() if isinstance(m, Tensor) and m.ndim}
        if len(shapes) > 1 and moments.keys() >= _MOMENTS:
            raise CheckpointError(f"{where}: state[{number}] has moments of two shapes; {AGAIN}")


def _check_model(state: Mapping[str, Any], settings: Mapping[str, Any], where: str) -> None:
    """The parts of a run's state that the settings describe too."""
    own = {key[6:]: value for key, value in state.items() if re.match(r"model\.", key)}
    encoder, front_end = (
        (settings.get(name) or {}).get("init_args", {}) for name in ("encoder", "front_end")
    )
    kind = str((settings.get("encoder") or {}).get("class_path", "peas."))
    if not kind.startswith("peas."):
        return
    check_geometry(own, where)
    _check_size(own, encoder, where)
    frames, labels = front_end.get("frames"), settings.get("labels")
    if "geometry" in own and frames is not None and int(own["geometry"][0]) != frames:
        raise CheckpointError(
            f"{where}: hyper_parameters: frames is {frames}, and its model has "
            f"{int(own['geometry'][0])}; {AGAIN}"
        )
    head = own.get("head.weight")
    if head is not None and labels is not None and head.shape[:1] != (len(labels),):
        raise CheckpointError(
            f"{where}: hyper_parameters: {len(labels)} labels, and its head.weight has shape "
            f"{list(head.shape)}; {AGAIN}"
        )


def _check_size(own: Mapping[str, Any], settings: Mapping[str, Any], where: str) -> None:
    """Refuse settings that would build another model than the file's, of any size."""
    size, table = settings.get("size"), own.get("encoder.pos_embed")
    if size is None or table is None:
        return
    if "geometry" not in own:
        raise CheckpointError(f"{where}: state_dict: model.geometry is missing; {AGAIN}")
    blocks = {key.split(".")[2] for key in own if key.startswith("encoder.blocks.")}
    value, expected = (table.shape[-1], len(blocks)), (SIZES[size].width, SIZES[size].depth)
    if value != expected:
        raise CheckpointError(
            f"{where}: hyper_parameters: size is {size}, of width {expected[0]} and depth "
            f"{expected[1]}, and its model has {value[0]} and {value[1]}; {AGAIN}"
        )


def _invalid(where: str, key: str, value: object, expected: str) -> CheckpointError:
    text = repr(value)
    short = text if len(text) <= 80 else f"{text[:60]}…"
    return CheckpointError(f"{where}: {key} is {short}, but should be {expected}; {AGAIN}")
