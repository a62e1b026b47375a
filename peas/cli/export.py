"""`peas export --checkpoint C --out F.pth`: weights in SSAST's or AudioMAE's own layout."""

from pathlib import Path
from typing import Any

from torch import Tensor

from peas.cli.arguments import Arguments
from peas.errors import CheckpointError, NoReconstruction, PeasError, printable, say
from peas.models.weights import family_of, read_state
from peas.models.weights.checking import check_run, malformed
from peas.models.weights.importer import Layout
from peas.models.weights.writing import write_atomic
from peas.parts import LONGEST

ENDINGS = (".pth", ".pt", ".ckpt", ".bin")
"""Of names that PyTorch files have."""


def main(argv: list[str]) -> None:
    """Runs the command."""
    p = Arguments(prog="peas export", description=__doc__)
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
    if out.suffix not in ENDINGS:
        raise PeasError(
            f"{out}: an official file is a PyTorch file, which no name in {out.suffix or 'nothing'}"
            f" suggests: let --out end in {' or '.join(ENDINGS)}"
        )
    content = read_state(args.checkpoint)
    check_run(content, args.checkpoint)
    try:
        with malformed(args.checkpoint):
            state, wrapper = official(content, args.layout, args.checkpoint)
    except NoReconstruction as error:
        raise NoReconstruction(f"{args.checkpoint}: {error}") from error
    write_atomic({wrapper: state} if wrapper else state, out)
    say(f"{out}: {len(state)} tensors, {args.layout} layout")
    if args.layout == "fine-tuned":
        say(
            "labels, in the order of the classifier: " + ", ".join(map(printable, _labels(content)))
        )


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
    settings = content.get("hyper_parameters") or {}
    named = (settings.get("encoder") or {}).get("class_path", "peas.")
    if not named.startswith("peas."):
        raise CheckpointError(
            f"{where}: its encoder is {named[:LONGEST]!r}, and only SSAST and AudioMAE have an "
            "official layout; its weights are in `state_dict`, under `model.`"
        )
    family = family_of(content)
    state, _ = family.unwrap(content, where)
    if "geometry" not in state:
        raise CheckpointError(f"{where}: is in the official layout already; nothing to export")
    try:
        return family.to_official(state, layout), family.wrapper
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}") from error


def _labels(content: dict[str, Any]) -> list[str]:
    return (content.get("hyper_parameters") or {}).get("labels") or []
