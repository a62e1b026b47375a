"""EAT's official layouts: fairseq checkpoints, pretrained and fine-tuned, and its hub folders.

The hub's names are this family's; those of fairseq are the same behind `modality_encoders.IMAGE.`,
but for the norm before the first block. A pretrained fairseq file also has a decoder and the
teacher's weights (`_ema`).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from peas.errors import CheckpointError
from peas.models.audiomae_layers import position_table
from peas.models.vit import Size
from peas.models.weights.encoder_only import EncoderOnlyFamily
from peas.models.weights.importer import Import, Layout, State

POSITIONS = "fixed_positional_encoder.positions"
ROWS, COLUMNS = 8, 768
"""Patches along frequency and time of the official table."""
FAIRSEQ = "modality_encoders.IMAGE."


class EATFamily(EncoderOnlyFamily):
    """Files of `peas.models.EAT`, whose positions are fixed: a file's table is only compared."""

    name = "EAT"
    prefixes: Mapping[str, str] = {
        "encoder.patch_embed.": "local_encoder.",
        "encoder.cls_token": "extra_tokens",
        "encoder.pre_norm.": "pre_norm.",
        "encoder.blocks.": "blocks.",
        "fc_norm.": "fc_norm.",
        "head.": "head.",
    }
    marks = ("extra_tokens", "encoder.pre_norm.weight")
    kernel = "local_encoder.proj.weight"
    block = "blocks."
    unused = (POSITIONS, "decoder.")

    def renamed(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """The hub's names of fairseq's, without the teacher's weights."""
        found = {
            k: v for k, v in state.items() if not (k.endswith("_ema") and isinstance(v, Mapping))
        }
        if not any(FAIRSEQ in key for key in found):
            return found
        names = {key: key.removeprefix("model.").removeprefix(FAIRSEQ) for key in found}
        return {
            name.replace("context_encoder.norm.", "pre_norm."): found[key]
            for key, name in names.items()
        }

    def settings(self, stated: Mapping[str, Any]) -> Mapping[str, Any]:
        """Those of the hub, flat, or of fairseq, nested; a fine-tuned file has its start's."""
        model = _inside(stated, "model") or stated
        start = _inside(model, "pretrained_model_args")
        model = _inside(start, "model") or model
        # Both have a width, under one name; it is checked by the shapes.
        return {**_inside(_inside(model, "modalities"), "image"), **model}

    def expected(self, job: Import, size: Size) -> Mapping[str, tuple[Any, Any]]:
        """Settings of the hub's `EATConfig` and of fairseq that the outputs depend on."""
        high, wide = job.model.patch
        wanted = {
            "num_heads": size.heads,
            "layer_norm_first": False,
            "norm_eps": 1e-6,
            "norm_affine": True,
            "mlp_ratio": 4.0,
            "qkv_bias": True,
            "fixed_positions": True,
            "patch_size": wide,
            "in_chans": 1,
            "prenet_depth": 0,
            "num_extra_tokens": 1,
            "use_alibi_encoder": False,
        }
        if high == wide:
            wanted |= {"stride": wide}
        return {key: (value, value) for key, value in wanted.items()}

    def to_ours(self, state: Mapping[str, Any], where: str = "the checkpoint") -> State:
        """As in `Family`.

        Raises:
            CheckpointError: The file's positions are not EAT's.
        """
        tensors, _ = self.unwrap(state, where)
        if POSITIONS in tensors and not _are_eats(tensors[POSITIONS]):
            raise CheckpointError(
                f"{where}: {POSITIONS} (shape {list(tensors[POSITIONS].shape)}) is not EAT's fixed "
                f"table of time and frequency in {ROWS} rows of patches; give weights of a model "
                "with it"
            )
        return super().to_ours(state, where)

    def complete(self, official: State, state: Mapping[str, Tensor], layout: Layout) -> State:
        """The fixed table; the hub's class wraps the model."""
        width = state["encoder.cls_token"].shape[2]
        official[POSITIONS] = _table(width, COLUMNS)
        return {"model." + key: value for key, value in official.items()}


def _table(width: int, columns: int) -> Tensor:
    return position_table(width, columns, ROWS, "geometric")[:, 1:]


def _are_eats(table: Tensor) -> bool:
    if table.ndim != 3 or table.shape[0] != 1 or table.shape[1] % ROWS or table.shape[2] % 4:
        return False
    ours = _table(table.shape[2], table.shape[1] // ROWS)
    # The official code takes sines of angles in float32, and hub files may be of half precision.
    return torch.allclose(table.detach().cpu().float(), ours, atol=2e-3, rtol=0)


def _inside(table: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The table of a key; empty where there is none."""
    value = table.get(key)
    return value if isinstance(value, Mapping) else {}
