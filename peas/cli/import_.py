"""`peas import F.pth --out C.ckpt`: an official file as a checkpoint of peas."""

from pathlib import Path
from typing import Any

import lightning

from peas.audio.frontend import KaldiLogMel
from peas.cli.arguments import Arguments
from peas.data.labels import read_labels
from peas.errors import CheckpointError, PeasError, say
from peas.models import SSAST, AudioMAE
from peas.models.weights import AUDIOMAE, family_of, load_pretrained, read_state
from peas.models.weights.checking import malformed
from peas.models.weights.writing import write_atomic
from peas.tasks.classification import Classification

STATISTICS = {
    "esc50": (-6.6268077, 5.358466, 512),
    "speech_commands_v2": (-6.845978, 5.5654526, 128),
    "audioset": (-4.2677393, 4.5689974, 1024),
}
"""Mean, standard deviation and frames of the official recipes."""


def parser() -> Arguments:
    """Arguments of the command."""
    p = Arguments(
        prog="peas import",
        description=__doc__ + " Without --out it only reports the file's keys. An official "
        "pretrained file needs no import: give it to `--model.init_args.pretrained`.",
    )
    p.add_argument("file", help="official file of SSAST or AudioMAE")
    p.add_argument("--out", help="checkpoint to write, for `peas test`, `peas tag` and the like")
    p.add_argument(
        "--dataset", choices=tuple(STATISTICS), default="esc50", help="labels and statistics"
    )
    p.add_argument(
        "--stride", nargs=2, type=int, metavar=("MELS", "FRAMES"), help="of SSAST; default 10 10"
    )
    p.add_argument("--pooling", choices=("mean", "cls"), default="mean")
    p.add_argument("--loss", choices=("ce", "bce"), default="ce", help="softmax or sigmoid scores")
    return p


def main(argv: list[str]) -> None:
    """Runs the command."""
    args = parser().parse_args(argv)
    state = read_state(args.file)
    with malformed(args.file):
        family = family_of(state)
        facts = family.describe(state, args.file)
    default = (10, 10) if facts.patch == (16, 16) else (facts.patch[0], 1)
    stride = facts.stride or tuple(args.stride or default)
    if args.stride and stride != tuple(args.stride):
        raise CheckpointError(
            f"{args.file} has patches at steps of {stride} (mel bins, frames), and --stride "
            f"is {tuple(args.stride)}: leave --stride out"
        )
    mean, std, frames = STATISTICS[args.dataset]
    labels = read_labels(args.dataset)
    if facts.num_classes and facts.num_classes != len(labels):
        raise CheckpointError(
            f"{args.file} has {facts.num_classes} classes and {args.dataset} {len(labels)}: "
            "choose another --dataset"
        )
    settings: dict[str, Any] = {"size": facts.size, "patch": facts.patch, "stride": stride}
    encoder: type[AudioMAE] | type[SSAST] = AudioMAE if family is AUDIOMAE else SSAST
    task = Classification(
        pretrained=None,
        encoder=encoder(**settings, pooling=args.pooling),
        front_end=KaldiLogMel(frames, mean, std),
        loss=args.loss,
        labels=labels,
        multi_label=args.dataset == "audioset",
    )
    task.build(initialise=False)
    say(str(load_pretrained(task.model, args.file)))
    if not args.out:
        return
    if not facts.num_classes:
        raise PeasError(
            f"{args.file} has no classifier, so its checkpoint could score nothing. Fine-tune it: "
            f"`peas fit --config … --model.init_args.pretrained {args.file}`"
        )
    out = Path(args.out)
    if out.exists():
        raise PeasError(f"{out} exists: choose another --out, nothing is overwritten")
    write_atomic(
        {
            "state_dict": task.state_dict(),
            "hyper_parameters": dict(task.hparams),
            "pytorch-lightning_version": lightning.__version__,
        },
        out,
    )
    say(f"written: {out}")
