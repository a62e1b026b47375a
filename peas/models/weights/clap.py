"""CLAP's audio tower: LAION's `.pt` files, the model folders of a hub, and keys of both.

Transformers' names of `ClapAudioModelWithProjection` are the common ones. LAION's attention keeps
query, key and value in one tensor, transformers' in three.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from peas.errors import CheckpointError
from peas.models.weights.checking import check_weights
from peas.models.weights.reading import read_state
from peas.teachers import htsat
from peas.teachers.htsat import HEADS, SHAPES, Arch

State = dict[str, Tensor]

# LAION: transformers. Each pattern is a part of a name, setting once; no name holds two.
_PARTS = {
    "bn0.": "batch_norm.",
    ".norm1.": ".layernorm_before.",
    ".norm2.": ".layernorm_after.",
    ".mlp.fc1.": ".intermediate.dense.",
    ".mlp.fc2.": ".output.dense.",
    ".attn.proj.": ".attention.output.dense.",
    ".attn.relative_position": ".attention.self.relative_position",
}
_PROJECTION = {"0.": "linear1.", "2.": "linear2."}
_SPLIT = ("query", "key", "value")
TOWER, PROJECTION = "audio_branch.", "audio_projection."
HUB_TOWER = "audio_model.audio_encoder."
# The fixed front end, which is ours, and the heads for AudioSet's classes.
UNUSED = ("spectrogram_extractor.", "logmel_extractor.", "tscam_conv.", "head.")

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_SOURCE = (
    "LAION's files are at huggingface.co/lukewys/laion_clap (630k-audioset-best.pt is the usual "
    "one), model folders for instance at huggingface.co/laion/clap-htsat-unfused: download one "
    "and give its path"
)
# Constants of the architecture, which some writers leave out.
_CONSTANT = ("relative_position_index", "num_batches_tracked")
# What a folder's config must have, if it has the key.
_TOWER_FACTS: dict[str, object] = {
    "num_mel_bins": htsat.MELS,
    "spec_size": 256,
    "patch_size": 4,
    "patch_stride": [4, 4],
    "window_size": 8,
    "num_attention_heads": list(HEADS),
    "hidden_act": "gelu",
    "projection_hidden_act": "relu",
}
# Our setting: the folder's name of it.
_FRONT_END_FACTS = {
    "rate": "sampling_rate",
    "fft": "fft_window_size",
    "hop": "hop_length",
    "mels": "feature_size",
    "low": "frequency_min",
    "high": "frequency_max",
}


@dataclass(frozen=True)
class ClapWeights:
    """Audio tower and projection of a CLAP checkpoint.

    Attributes:
        path: The file or folder.
        arch: Size of the tower, inferred from its tensors.
        state: float32 tensors in transformers' names (`ClapAudioModelWithProjection`).
        laion: Whether the file uses LAION's names.
    """

    path: str
    arch: Arch
    state: State
    laion: bool

    def fitted(self, expected: Mapping[str, Tensor]) -> State:
        """The tensors that a network needs, complete and of its shapes.

        Args:
            expected: The network's own tensors in transformers' names.

        Raises:
            CheckpointError: If one is missing, left over or of another shape.
        """
        have = dict(self.state)
        for key, value in expected.items():
            if key.endswith(_CONSTANT):
                have.setdefault(key, value)
        missing = [self._name(key) for key in expected if key not in have]
        extra = [self._name(key) for key in have if key not in expected]
        for word, keys in (("lacks", missing), ("has unknown tensors", extra)):
            if keys:
                raise CheckpointError(
                    f"{self.path}: as {self.arch} it {word} {', '.join(keys[:4])}"
                    f"{', …' if len(keys) > 4 else ''} ({len(keys)}); the file is incomplete or "
                    f"of another model. {_SOURCE}"
                )
        for key, value in expected.items():
            if have[key].shape != value.shape:
                raise CheckpointError(
                    f"{self.path}: {self._name(key)} has shape {list(have[key].shape)}, but "
                    f"{self.arch} needs {list(value.shape)}; give a file of that model. {_SOURCE}"
                )
        return {key: have[key] for key in expected}

    def _name(self, key: str) -> str:
        return laion_key(key) if self.laion else key


def read_clap(path: str | Path) -> ClapWeights:
    """Read the audio tower of a LAION `.pt` file or of a hub's model folder.

    The text tower and whatever a training run saved besides are left out. LAION's files may carry
    a `state_dict` wrapper, a `module.` prefix and NumPy numbers; nothing in them is executed.

    Args:
        path: A file, or a folder with `config.json` and the weights.

    Raises:
        CheckpointError: If it is missing or damaged, holds no audio tower, another tower than
            HTSAT-tiny or HTSAT-base, a fusion model, another front end, or weights that are not
            finite.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder. {_SOURCE}")
    raw = _folder_state(path) if path.is_dir() else _file_state(path)
    where = str(path)
    audio = {k: v for k, v in raw.items() if k.startswith((TOWER, "audio_model.", PROJECTION))}
    fused = next((k for k in audio if "fusion_model" in k or "mel_conv" in k), None)
    if fused is not None:
        raise CheckpointError(
            f"{where}: is a fusion CLAP (it has {fused}), which needs four spectrograms of each "
            f"clip; give an unfused one. {_SOURCE}"
        )
    laion = any(key.startswith(TOWER) for key in audio)
    first = f"{TOWER if laion else HUB_TOWER}patch_embed.proj.weight"
    if not all(isinstance(value, Tensor) for value in audio.values()) or first not in audio:
        names = ", ".join(list(raw)[:4]) or "nothing"
        held = f"an audio tower other than HTSAT ({', '.join(list(audio)[:2])}, …)"
        raise CheckpointError(
            f"{where}: is no CLAP with an HTSAT audio tower. It holds "
            f"{held if audio else names + ', …'} where {first} is expected. {_SOURCE}"
        )
    if laion:
        _require_front_end(audio, where)
        audio = to_hub(audio)
    theirs = {(laion_key(key) if laion else key): v for key, v in audio.items()}
    check_weights(theirs, where)
    state = {k: v.float() if v.is_floating_point() else v for k, v in audio.items()}
    return ClapWeights(where, _arch(state, where), state, laion)


def _arch(state: State, where: str) -> Arch:
    width = state[HUB_TOWER + "patch_embed.proj.weight"].shape[0]
    for arch, shape in SHAPES.items():
        if shape.first == width:
            return arch
    widths = ", ".join(f"{arch} ({shape.first})" for arch, shape in SHAPES.items())
    raise CheckpointError(
        f"{where}: its audio tower starts {width} wide; those known are {widths}. {_SOURCE}"
    )


def _file_state(path: Path) -> dict[str, Any]:
    with _numpy_numbers():
        state = read_state(path)
    inner = state.get("state_dict", state)
    if not isinstance(inner, Mapping):
        raise CheckpointError(f"{path}: its state_dict is no dictionary of tensors. {_SOURCE}")
    return {str(key).removeprefix("module."): value for key, value in inner.items()}


@contextmanager
def _numpy_numbers() -> Iterator[None]:
    """Allow the plain numbers that LAION's training saved beside the weights."""
    import numpy as np

    # NumPy 1.26 has the name too.
    scalar = import_module("numpy._core.multiarray").scalar
    dtypes: list[Any] = [np.dtypes.Float64DType, np.dtypes.Float32DType, np.dtypes.Int64DType]
    allowed = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    with torch.serialization.safe_globals([*allowed, np.dtype, *dtypes]):
        yield


def _folder_state(path: Path) -> dict[str, Any]:
    config = _json(path / "config.json")
    tower = config.get("audio_config", config)
    if not isinstance(tower, dict):
        raise CheckpointError(
            f"{path / 'config.json'}: audio_config is {tower!r}, not a table of settings; download "
            f"it again. {_SOURCE}"
        )
    _require(tower, _TOWER_FACTS, path / "config.json")
    if (path / "preprocessor_config.json").exists():
        expected = {name: htsat.SETTINGS[ours] for ours, name in _FRONT_END_FACTS.items()}
        file = path / "preprocessor_config.json"
        _require(_json(file), expected, file)
    for name in _WEIGHTS:
        if (path / name).is_file():
            break
    else:
        raise CheckpointError(f"{path}: holds neither {' nor '.join(_WEIGHTS)}. {_SOURCE}")
    if name.endswith(".bin"):
        return read_state(path / name)
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path / name))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path / name}: cannot be read ({error}); it is cut short or damaged. Copy or "
            "download it again"
        ) from error


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: missing, so this is no model folder. {_SOURCE}") from error
    # A thousand brackets are a RecursionError.
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is no JSON ({error}); download it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds no JSON object; download it again")
    return content


def _require(content: Mapping[str, Any], expected: Mapping[str, object], file: Path) -> None:
    for key, value in expected.items():
        setting = content.get(key, value)
        if setting != value:
            raise CheckpointError(
                f"{file}: {key} is {setting!r}, but CLAP's HTSAT towers have {value!r}; "
                f"give the folder of one of those. {_SOURCE}"
            )


def _require_front_end(audio: Mapping[str, Tensor], where: str) -> None:
    """Refuse a tower that was trained on another log-mel than ours, by its filters."""
    theirs, ours = audio.get(f"{TOWER}logmel_extractor.melW"), htsat.mel_bank()
    if theirs is None:
        return
    same = theirs.shape == ours.shape and torch.allclose(theirs.float(), ours, rtol=1e-3, atol=1e-6)
    if not same:
        raise CheckpointError(
            f"{where}: its mel filters {list(theirs.shape)} are not those of {htsat.MELS} "
            f"Slaney mels from 50 to 14000 Hz at 48 kHz; this tower takes another log-mel. "
            f"{_SOURCE}"
        )


def to_hub(laion: Mapping[str, Tensor]) -> State:
    """Rename `audio_branch.*` and `audio_projection.*` to transformers' names.

    Tensors that no feature depends on are left out: the front end, the class heads and the
    attention masks of shifted windows, which transformers makes itself.
    """
    state: State = {}
    for key, value in laion.items():
        tower = key.removeprefix(TOWER)
        if tower.startswith(UNUSED) or tower.endswith("attn_mask"):
            continue
        if ".attn.qkv." in key:
            kind = key.rsplit(".", 1)[1]
            stem = HUB_TOWER + tower.split(".attn.qkv.")[0]
            for name, part in zip(_SPLIT, value.chunk(3), strict=True):
                state[f"{stem}.attention.self.{name}.{kind}"] = part
        else:
            state[hub_key(key)] = value
    return state


def to_laion(state: Mapping[str, Tensor]) -> State:
    """The inverse of `to_hub`, for the tensors that it keeps."""
    laion: State = {}
    for key, value in state.items():
        if re.search(r"\.self\.(key|value)\.", key):
            continue
        if ".self.query." in key:
            three = [state[key.replace(".query.", f".{name}.")] for name in _SPLIT]
            value = torch.cat(three)
        laion[laion_key(key)] = value
    return laion


def hub_key(laion: str) -> str:
    """Transformers' name of one of LAION's, but for the joined attention tensors."""
    if laion.startswith(PROJECTION):
        return _replace(laion, {PROJECTION + k: PROJECTION + v for k, v in _PROJECTION.items()})
    return HUB_TOWER + _replace(laion.removeprefix(TOWER), _PARTS)


def laion_key(hub: str) -> str:
    """LAION's name of one of transformers'; the three attention tensors share one."""
    if hub.startswith(PROJECTION):
        return _replace(hub, {PROJECTION + v: PROJECTION + k for k, v in _PROJECTION.items()})
    name = re.sub(r"\.attention\.self\.(query|key|value)\.", ".attn.qkv.", hub)
    # The longest first: an attention's own output ends like a block's.
    parts = sorted(((v, k) for k, v in _PARTS.items()), key=lambda part: -len(part[0]))
    return TOWER + _replace(name.removeprefix(HUB_TOWER), dict(parts))


def _replace(name: str, parts: Mapping[str, str]) -> str:
    for old, new in parts.items():
        if old in name:
            return name.replace(old, new)
    return name
