"""BEATs's official layout: a dictionary of `cfg` and `model`, or a hub folder of the same keys.

A pretrained file of the base size has 250 tensors, a fine-tuned one two more. All blocks list one
table of relative positions.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from peas.errors import CheckpointError
from peas.models.beats import GROUPS, KERNEL
from peas.models.vit import SIZES, Size
from peas.models.weights.encoder_only import EncoderOnlyFamily
from peas.models.weights.importer import Import, Layout, State

BIAS = "self_attn.relative_attention_bias.weight"
BLOCK = "encoder.layers."
INSIDE: Mapping[str, str] = {
    "attn.gate.": "self_attn.grep_linear.",
    "attn.gate_scale": "self_attn.grep_a",
    "attn.": "self_attn.",
    "norm1.": "self_attn_layer_norm.",
    "mlp.fc1.": "fc1.",
    "mlp.fc2.": "fc2.",
    "norm2.": "final_layer_norm.",
}
"""Our names inside a block -> the official ones. The first match decides."""


class BEATsFamily(EncoderOnlyFamily):
    """Files of `peas.models.BEATs`."""

    name = "BEATs"
    prefixes: Mapping[str, str] = {
        "encoder.patch_embed.proj.": "patch_embedding.",
        "encoder.patch_embed.patch_norm.": "layer_norm.",
        "encoder.patch_embed.project.": "post_extract_proj.",
        "encoder.patch_embed.position.bias": "encoder.pos_conv.0.bias",
        "encoder.patch_embed.position.parametrizations.weight.original0": (
            "encoder.pos_conv.0.weight_g"
        ),
        "encoder.patch_embed.position.parametrizations.weight.original1": (
            "encoder.pos_conv.0.weight_v"
        ),
        "encoder.patch_embed.norm.": "encoder.layer_norm.",
        "encoder.distances.bias": f"{BLOCK}0.{BIAS}",
        "encoder.blocks.": BLOCK,
        "head.": "predictor.",
    }
    marks = ("patch_embedding.weight", "encoder.patch_embed.proj.weight")
    kernel = "patch_embedding.weight"
    block = BLOCK
    wrapper = "model"

    def expected(self, job: Import, size: Size) -> Mapping[str, tuple[Any, Any]]:
        """The settings of `BEATsConfig` that the outputs depend on."""
        model = job.model
        return {
            "input_patch_size": (-1, model.patch[0]),
            "embed_dim": (512, model.patch_width),
            "conv_bias": (False, False),
            "encoder_layers": (12, size.depth),
            "encoder_embed_dim": (768, size.width),
            "encoder_ffn_embed_dim": (3072, 4 * size.width),
            "encoder_attention_heads": (12, size.heads),
            "activation_fn": ("gelu", "gelu"),
            "layer_norm_first": (False, False),
            "deep_norm": (False, True),
            "conv_pos": (128, KERNEL),
            "conv_pos_groups": (16, GROUPS),
            "relative_position_embedding": (False, True),
            "num_buckets": (320, model.buckets),
            "max_distance": (1280, model.max_distance),
            "gru_rel_pos": (False, True),
        }

    def ours(self, key: str) -> str:
        """As in the base; a block's inner names differ too."""
        renamed = super().ours(key)
        if not renamed.startswith("encoder.blocks."):
            return renamed
        number, _, rest = renamed.removeprefix("encoder.blocks.").partition(".")
        for ours, official in INSIDE.items():
            if rest.startswith(official):
                rest = ours + rest.removeprefix(official)
                break
        return f"encoder.blocks.{number}.{rest}"

    def file_key(self, key: str, *, official: bool) -> str:
        """As in the base; a block's inner names differ too."""
        if not official or not key.startswith("encoder.blocks."):
            return super().file_key(key, official=official)
        number, _, rest = key.removeprefix("encoder.blocks.").partition(".")
        for ours, theirs in INSIDE.items():
            if rest.startswith(ours):
                rest = theirs + rest.removeprefix(ours)
                break
        return f"{BLOCK}{number}.{rest}"

    def to_ours(self, state: Mapping[str, Any], where: str = "the checkpoint") -> State:
        """As in `Family`; the blocks must agree on their table of relative positions."""
        tensors, _ = self.unwrap(state, where)
        ours: State = {}
        for key, value in tensors.items():
            shared = key.startswith(BLOCK) and key.endswith(BIAS)
            name = "encoder.distances.bias" if shared else self.ours(key)
            if name == key:
                raise CheckpointError(
                    f"{where}: unexpected key {key} (shape {list(value.shape)}) in an official "
                    "BEATs file; remove it, or give the file as the official code saved it"
                )
            if name in ours and not torch.equal(ours[name], value):
                raise CheckpointError(
                    f"{where}: {key} differs from the first block's, and BEATs's blocks share one "
                    "table; give the file as the official code saved it"
                )
            ours[name] = value
        return ours

    def complete(self, official: State, state: Mapping[str, Tensor], layout: Layout) -> State:
        """Each block lists the table of relative positions."""
        numbers = {key.split(".")[2] for key in official if key.startswith(BLOCK)}
        table = official[f"{BLOCK}0.{BIAS}"]
        return official | {f"{BLOCK}{number}.{BIAS}": table for number in numbers}

    def beside(self, state: Mapping[str, Tensor], settings: Mapping[str, Any]) -> dict[str, Any]:
        """`cfg`, which the official code builds its model from."""
        info = self._describe(state, "the checkpoint")
        width, depth, heads = SIZES[info.size]
        return {
            "cfg": {
                "input_patch_size": info.patch[0],
                "embed_dim": state["encoder.patch_embed.proj.weight"].shape[0],
                "encoder_layers": depth,
                "encoder_embed_dim": width,
                "encoder_ffn_embed_dim": 4 * width,
                "encoder_attention_heads": heads,
                "deep_norm": True,
                "dropout": 0.0,
                "attention_dropout": 0.0,
                "relative_position_embedding": True,
                "num_buckets": state["encoder.distances.bias"].shape[0],
                "max_distance": settings.get("max_distance", 800),
                "gru_rel_pos": True,
                "finetuned_model": info.num_classes > 0,
                "predictor_dropout": 0.0,
                "predictor_class": info.num_classes,
            }
        }
