"""Keys of CLAP's audio tower: LAION's files and transformers', in both directions.

Transformers' names of `ClapAudioModelWithProjection` are the common ones. LAION's attention keeps
query, key and value in one tensor, transformers' in three.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

State = dict[str, Tensor]

# LAION: transformers. Each pattern is a part of a name, found once; no name holds two.
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
