"""`peas export --checkpoint C --out F.pth`: weights in the official SSAST layout."""

import argparse
from pathlib import Path

import torch

from peas.commands.tag import load
from peas.errors import PeasError
from peas.models.checkpoints.ssast import to_official


def main(argv: list[str]) -> None:
    """Runs the command."""
    p = argparse.ArgumentParser(prog="peas export", description=__doc__)
    p.add_argument("--checkpoint", required=True, help="best.ckpt or last.ckpt of a run")
    p.add_argument("--out", required=True, help="file to write")
    p.add_argument(
        "--layout",
        choices=("pretrained", "fine-tuned"),
        default="fine-tuned",
        help="pretrained is what the official fine-tuning code reads: encoder and pretraining "
        "heads; fine-tuned has encoder and classifier (default)",
    )
    args = p.parse_args(argv)
    out = Path(args.out)
    if out.exists():
        raise PeasError(f"{out} exists: choose another --out, nothing is overwritten")
    task = load(args.checkpoint)
    state = to_official(task.model.state_dict(), args.layout)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial")
    torch.save(state, partial)
    partial.replace(out)
    print(f"{out}: {len(state)} tensors, {args.layout} layout")
    if args.layout == "fine-tuned":
        print("labels, in the order of the classifier: " + ", ".join(task.hparams["labels"]))
