"""Read a checkpoint without running code from it, and report on its keys."""

import argparse
import json
import pickle
import pickletools
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch

from peas.errors import CheckpointError
from peas.models.weights.checking import check_weights, require_stored
from peas.models.weights.exported import CONFIG, WEIGHTS, exported_folder, read_exported

LISTED = 5
"""Checkpoints listed in the error for a missing one."""


@dataclass
class ImportReport:
    """What happened to every key when weights were imported from a file.

    Attributes:
        path: The file.
        kind: What the file is, in words.
        used: Keys of the file whose tensors the model now holds.
        ignored: Keys of the file that were not used, and why.
        missing: Keys of the model that the file could not fill, and why.
        notes: Conversions, such as positions cut to another grid.
    """

    path: str
    kind: str
    used: list[str] = field(default_factory=list)
    ignored: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """Short summary: counts, then one line for each reason."""
        lines = [
            f"{self.path}: {self.kind}; {len(self.used)} tensors used, "
            f"{len(self.ignored)} ignored, {len(self.missing)} missing"
        ]
        for title, keys in (("ignored", self.ignored), ("missing", self.missing)):
            for reason in dict.fromkeys(keys.values()):
                names = [key for key, why in keys.items() if why == reason]
                listed = ", ".join(names[:4]) + (f", … ({len(names)})" if len(names) > 4 else "")
                lines.append(f"  {title}: {listed}: {reason}")
        lines.extend(f"  {note}" for note in self.notes)
        return "\n".join(lines)


def read_state(
    path: str | Path, *, pretrained: bool = False, file: BinaryIO | None = None
) -> dict[str, Any]:
    """Read a checkpoint's dictionary onto the CPU; nothing in the file is executed.

    Args:
        path: A file written by `torch.save`, in the zip or the old pickle format; a folder of
            `peas export --format hf`, or its weights, which are read as a run's checkpoint; or a
            `.safetensors` file or folder of a model hub, whose settings are under `cfg` and whose
            tensors under `model`.
        pretrained: Whether official weights would do, so that the error for a missing file names
            their source.
        file: The open file, to be read in place of `path`.

    Raises:
        CheckpointError: The file is missing or damaged, contains code, holds no dictionary with
            text keys, or weights that are not finite.
    """
    path = Path(path)
    if folder := exported_folder(path):
        return read_exported(folder, str(path))
    if path.suffix == ".safetensors" and path.is_file():
        return {"model": _read_safetensors(path)}
    if path.is_dir():
        if (path / WEIGHTS).is_file():
            return _read_hub_folder(path)
        inside = path / "checkpoints" if (path / "checkpoints").is_dir() else path
        present = [name for name in ("best.ckpt", "last.ckpt") if (inside / name).is_file()]
        advice = f"give {inside / present[0]}" if present else "give a checkpoint file in it"
        raise CheckpointError(f"{path}: is a folder and no checkpoint file: {advice}")
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint file{_advice(path, pretrained)}")
    _refuse_compressed(path)
    try:
        # Official AudioMAE files hold their arguments: a class of plain attributes, made here
        # without calling anything that the file names.
        with torch.serialization.safe_globals([argparse.Namespace]):
            state = torch.load(file or path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        if named is None and not _is_plain_pickle(path):
            raise CheckpointError(_damaged(path)) from error
        what = f" ({named.group(1)})" if named else ""
        if named and named.group(1).startswith(("omegaconf", "fairseq")):
            raise CheckpointError(
                f"{path}: a fairseq checkpoint that holds Python objects{what} and not only "
                "tensors; opening those can run any code, and nothing was executed. Take the "
                f"model's folder from the hub (config.json and {WEIGHTS}) and give its path"
            ) from error
        raise CheckpointError(
            f"{path}: refused, because it holds Python objects{what} and not only tensors, and "
            "opening those can run any code; nothing was executed. Get the weights from a source "
            "that you trust, or save the bare state_dict with torch.save"
        ) from error
    except PermissionError as error:
        raise CheckpointError(f"{path}: may not be read; check the file's permissions") from error
    # Which of these torch raises depends on which bytes are damaged.
    except (
        RuntimeError,
        MemoryError,
        EOFError,
        OSError,
        ValueError,
        LookupError,
        AttributeError,
        TypeError,
        AssertionError,
    ) as error:
        raise CheckpointError(_damaged(path)) from error
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise CheckpointError(
            f"{path}: holds a {type(state).__name__}, not a dictionary of named tensors; "
            "save the model's state_dict with torch.save"
        )
    try:
        _require_stored(state, str(path))
    except RecursionError:
        raise CheckpointError(
            f"{path}: is nested too deeply for a checkpoint; get the file again"
        ) from None
    for wrapper in ("state_dict", "model"):
        if isinstance(state.get(wrapper), Mapping):
            check_weights(state[wrapper], str(path))
            break
    else:
        check_weights(state, str(path))
    return state


def _read_hub_folder(folder: Path) -> dict[str, Any]:
    file = folder / CONFIG
    if not file.is_file():
        raise CheckpointError(
            f"{file}: no such file, and it says what model the weights beside it are of; download "
            "the whole folder"
        )
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: cannot be read as JSON ({error}); get it again") from error
    if not isinstance(settings, dict):
        raise CheckpointError(f"{file}: holds no table of settings; get it again")
    return {"cfg": settings, "model": _read_safetensors(folder / WEIGHTS)}


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, MemoryError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}: cannot be read as safetensors ({error}); the file "
            f"({path.stat().st_size} bytes) is cut short or damaged: get it again"
        ) from error
    check_weights(tensors, str(path))
    return tensors


def _advice(path: Path, pretrained: bool) -> str:
    """Advice for a missing file."""
    beside = sorted(file.name for file in path.parent.glob("*.ckpt"))
    if beside:
        more = f" and {len(beside) - LISTED} more" if len(beside) > LISTED else ""
        return f"; in {path.parent} there are {', '.join(beside[:LISTED])}{more}"
    if pretrained:
        return (
            ". Official SSAST weights are linked from the README of the SSAST repository "
            "(github.com/YuanGongND/ssast), for instance SSAST-Base-Patch-400.pth: download one "
            "and give its path"
        )
    where = "which has no checkpoint (*.ckpt)" if path.parent.is_dir() else "which is not there"
    return f" in {path.parent}, {where}: check the path"


def _require_stored(value: Any, where: str) -> None:
    """`require_stored` for every tensor, however deep."""
    if isinstance(value, torch.Tensor):
        require_stored(value, where)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            _require_stored(inner, f"{where}: {key}")
    elif isinstance(value, list | tuple):
        for inner in value:
            _require_stored(inner, where)


def _refuse_compressed(path: Path) -> None:
    """Refuse an archive that would grow while it is read; torch never writes one."""
    try:
        with zipfile.ZipFile(path) as archive:
            packed = [i for i in archive.infolist() if i.compress_type != zipfile.ZIP_STORED]
    # Not an archive, or a damaged one: torch reports it.
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return
    if packed:
        raise CheckpointError(
            f"{path}: {packed[0].filename} is compressed, which PyTorch never does; get the file "
            "again, as it was saved"
        )


def _damaged(path: Path) -> str:
    return (
        f"{path}: cannot be read as a PyTorch checkpoint; the file ({path.stat().st_size} bytes) "
        "is cut short, damaged or of another format. Copy or download it again and compare sizes"
    )


def _is_plain_pickle(path: Path) -> bool:
    """Whether the file is a pickle that torch did not write; reads the opcodes, runs none."""
    try:
        with path.open("rb") as file:
            for _ in pickletools.genops(file):
                pass
    # A malformed argument of an opcode surfaces as whatever its decoder raised.
    except Exception:
        return False
    return True
