"""`peas export --checkpoint C --out F.pth`: weights in SSAST's or AudioMAE's own layout."""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from peas.errors import CheckpointError, NoReconstruction, PeasError
from peas.models.checkpoints import audiomae, audiomae_keys, read_state, ssast, ssast_keys
from peas.models.checkpoints.audiomae_keys import Layout


def main(argv: list[str]) -> None:
    """Runs the command."""
    p = argparse.ArgumentParser(prog="peas export", description=__doc__)
    p.add_argument(
        "--checkpoint",
        required=True,
        help="best.ckpt or last.ckpt of a run, of fine-tuning or pretraining",
    )
    p.add_argument("--out", required=True, help="file to write")
    p.add_argument(
        "--layout",
        choices=("pretrained", "fine-tuned"),
        default="fine-tuned",
        help="pretrained is what the official fine-tuning code reads: encoder and pretraining "
        "heads, or decoder; fine-tuned has encoder and classifier (default)",
    )
    args = p.parse_args(argv)
    out = Path(args.out)
    if out.exists():
        raise PeasError(f"{out} exists: choose another --out, nothing is overwritten")
    content = read_state(args.checkpoint)
    try:
        state, wrapper = official(content, args.layout, args.checkpoint)
    except NoReconstruction as error:
        raise NoReconstruction(f"{args.checkpoint}: {error}") from error
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial")
    torch.save({wrapper: state} if wrapper else state, partial)
    partial.replace(out)
    print(f"{out}: {len(state)} tensors, {args.layout} layout")
    if args.layout == "fine-tuned":
        print("labels, in the order of the classifier: " + ", ".join(_labels(content)))


def official(content: dict[str, Any], layout: Layout, where: str) -> tuple[dict[str, Tensor], str]:
    """The official tensors of a checkpoint of ours, and the key that they lie under in a file.

    Args:
        content: What `read_state` gave.
        layout: `pretrained` or `fine-tuned`.
        where: The file, for errors.

    Raises:
        CheckpointError: It is no checkpoint of a run, or has no classifier that is asked for.
        NoReconstruction: It has no pretraining heads that are asked for.
    """
    if not _labels(content) and layout == "fine-tuned":
        raise CheckpointError(
            f"{where}: not a checkpoint of a fine-tuning run (it names no labels). Give "
            "RUN/checkpoints/best.ckpt, or `--layout pretrained` for a run of pretraining"
        )
    mae = audiomae_keys.is_audiomae(content)
    state, _ = (audiomae_keys if mae else ssast_keys).unwrap(content, where)
    if "geometry" not in state:
        raise CheckpointError(f"{where}: is in the official layout already; nothing to export")
    try:
        if mae:
            return audiomae.to_official(state, layout), "model"
        return ssast.to_official(state, layout), ""
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}") from error


def _labels(content: dict[str, Any]) -> list[str]:
    return (content.get("hyper_parameters") or {}).get("labels") or []
