"""Parameter groups: the head by itself, weights with and without decay, rates by depth.

Every group has `base_lr`, its rate at factor 1, and a `name`.
"""

from collections.abc import Iterable
from typing import Any

from torch import nn

from peas.models.encoder import Encoder

UNDECAYED = ("cls_token", "dist_token", "pos_embed")
"""Not decayed by timm's models, which AudioMAE's fine-tuning follows."""


def head_groups(
    model: nn.Module, head_names: Iterable[str], lr: float, head_lr_mult: float
) -> list[dict[str, Any]]:
    """Two parameter groups: the encoder, and the head at `lr * head_lr_mult`.

    Args:
        model: Its parameters without gradient are left out.
        head_names: Prefixes of the head's parameter names, such as `head` and `fc_norm`.
        lr: Learning rate of the encoder.
        head_lr_mult: The official code's `head_lr`.
    """
    prefixes = tuple(f"{name}." for name in head_names)
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    body = [p for name, p in named if not name.startswith(prefixes)]
    head = [p for name, p in named if name.startswith(prefixes)]
    return [
        {"params": body, "lr": lr, "base_lr": lr, "name": "encoder"},
        {"params": head, "lr": lr * head_lr_mult, "base_lr": lr * head_lr_mult, "name": "head"},
    ]


def decay_groups(module: nn.Module, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices with weight decay, vectors and biases without (AudioMAE's pretraining).

    Class and mask token have three axes and so are decayed, as officially.

    Args:
        module: Its parameters without gradient are left out.
        lr: Learning rate of both groups.
        weight_decay: Of the first group.
    """
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    shared = {"lr": lr, "base_lr": lr}
    groups = [
        {
            "params": [p for name, p in named if _has_decay(name, p.ndim)],
            "weight_decay": weight_decay,
            "name": "decay",
            **shared,
        },
        {
            "params": [p for name, p in named if not _has_decay(name, p.ndim)],
            "weight_decay": 0.0,
            "name": "no_decay",
            **shared,
        },
    ]
    return [group for group in groups if group["params"]]


def layer_groups(
    model: Encoder, lr: float, weight_decay: float, layer_decay: float
) -> list[dict[str, Any]]:
    """Layer-wise learning rates: the nearer to the input, the smaller (BEiT, AudioMAE).

    Patch embedding, special tokens and positions are layer 0, block i is layer i + 1, and all the
    rest (last norm, `fc_norm`, `head`) layer `depth + 1`. Layer i trains at
    `lr * layer_decay ** (depth + 1 - i)`. Each layer has one group with weight decay and one
    without (vectors, biases, special tokens and positions): 28 groups for 12 blocks.

    Args:
        model: Its parameters without gradient are left out.
        lr: Learning rate of the last layer.
        weight_decay: Of the decayed groups.
        layer_decay: Ratio of one layer's rate to the next one's, above 0 and up to 1 = all alike.

    Returns:
        Groups from the last layer to the first, so that the first one has the full rate.
    """
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        layer = model.layer_of(name)
        decayed = _has_decay(name, p.ndim) and not name.endswith(UNDECAYED)
        if (layer, decayed) not in groups:
            rate = lr * layer_decay ** (model.depth + 1 - layer)
            groups[layer, decayed] = {
                "params": [],
                "lr": rate,
                "base_lr": rate,
                "weight_decay": weight_decay if decayed else 0.0,
                "name": f"layer_{layer}_{'decay' if decayed else 'no_decay'}",
            }
        groups[layer, decayed]["params"].append(p)
    return [groups[key] for key in sorted(groups, reverse=True)]


def _has_decay(name: str, axes: int) -> bool:
    return axes > 1 and not name.endswith(".bias")
