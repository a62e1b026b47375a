"""`peas export` and `peas import`: checkpoints to and from the official layouts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from peas.errors import CheckpointError, NoReconstruction, PeasError, printable, say

if TYPE_CHECKING:
    from torch import Tensor

    from peas.models.weights.importer import Layout

ENDINGS = (".pth", ".pt", ".ckpt", ".bin")
"""Extensions of PyTorch files."""
STATISTICS = {
    "esc50": (-6.6268077, 5.358466, 512),
    "speech_commands_v2": (-6.845978, 5.5654526, 128),
    "audioset": (-4.2677393, 4.5689974, 1024),
}
"""Mean, standard deviation and frames of the official recipes."""


def _new_file(out: str) -> Path:
    if Path(out).exists():
        raise PeasError(f"{out} exists: choose another --out, nothing is overwritten")
    return Path(out)


def export(
    *, checkpoint: str, out: str, layout: Literal["pretrained", "fine-tuned"] = "fine-tuned"
) -> None:
    """Write a checkpoint's weights in the official layout of its family.

    Args:
        checkpoint: best.ckpt or last.ckpt of a run, of fine-tuning or pretraining.
        out: File to write.
        layout: What the file is for. `pretrained`, for the official fine-tuning code, has the
            encoder and the pretraining heads, or decoder; `fine-tuned` has encoder and classifier.
    """
    from peas.models.weights import read_state
    from peas.models.weights.checking import check_run, malformed
    from peas.models.weights.writing import write_atomic

    file = _new_file(out)
    if file.suffix not in ENDINGS:
        raise PeasError(
            f"{out}: an official file is a PyTorch file: let --out end in {' or '.join(ENDINGS)}"
        )
    content = read_state(checkpoint)
    check_run(content, checkpoint)
    try:
        with malformed(checkpoint):
            state, wrapper, beside = official(content, layout, checkpoint)
    except NoReconstruction as error:
        raise NoReconstruction(f"{checkpoint}: {error}") from error
    write_atomic({wrapper: state, **beside} if wrapper else state, file)
    say(f"{out}: {len(state)} tensors, {layout} layout")
    if layout == "fine-tuned":
        labels = ", ".join(map(printable, _labels(content)))
        say(f"labels, in the order of the classifier: {labels}")


def official(
    content: dict[str, Any], layout: Layout, checkpoint: str
) -> tuple[dict[str, Tensor], str, dict[str, Any]]:
    """The official tensors of a checkpoint of peas, the key that wraps them in a file, the rest.

    Args:
        content: What `read_state` gave.
        layout: `pretrained` or `fine-tuned`.
        checkpoint: The file, for errors.

    Raises:
        CheckpointError: It is not of a run, or lacks the classifier.
        NoReconstruction: It lacks the pretraining heads.
    """
    from peas.models.weights import family_of
    from peas.parts import LONGEST

    if not _labels(content) and layout == "fine-tuned":
        raise CheckpointError(
            f"{checkpoint}: not a checkpoint of a fine-tuning run (it names no labels). Give "
            "RUN/checkpoints/best.ckpt, or `--layout pretrained` for a run of pretraining"
        )
    settings = content.get("hyper_parameters") or {}
    encoder = settings.get("encoder") or {}
    named = encoder.get("class_path", "peas.")
    if not named.startswith("peas."):
        raise CheckpointError(
            f"{checkpoint}: its encoder is {named[:LONGEST]!r}, and only SSAST, AudioMAE, BEATs "
            "and EAT have an official layout; its weights are in `state_dict`, under `model.`"
        )
    family = family_of(content)
    state, _ = family.unwrap(content, checkpoint)
    if family.is_official(state):
        raise CheckpointError(f"{checkpoint}: is in the official layout already")
    try:
        weights = family.to_official(state, layout)
        return weights, family.wrapper, family.beside(state, encoder.get("init_args") or {})
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint}: {error}") from error


def _labels(content: dict[str, Any]) -> list[str]:
    return (content.get("hyper_parameters") or {}).get("labels") or []


def import_(
    file: str,
    *,
    out: str | None = None,
    dataset: Literal["esc50", "speech_commands_v2", "audioset"] = "esc50",
    stride: tuple[int, int] | None = None,
    pooling: Literal["mean", "cls"] | None = None,
    loss: Literal["ce", "bce"] = "ce",
) -> None:
    """Make a checkpoint of an official file.

    Without --out it only reports the file's keys. An official pretrained file needs no import: give
    it to `--model.init_args.pretrained`.

    Args:
        file: Official file of SSAST, AudioMAE, BEATs or EAT, or the folder of a model hub.
        out: Checkpoint to write, for `peas test`, `peas tag` and the like.
        dataset: Labels and statistics.
        stride: Mel bins and frames from patch to patch of SSAST; default 10 10.
        pooling: How tokens become one vector; default as the encoder's fine-tuning: `cls` for
            EAT, `mean` for the others, and BEATs has no other.
        loss: Softmax (ce) or sigmoid (bce) scores.
    """
    import lightning

    from peas.audio.frontend import BEATsLogMel, KaldiLogMel
    from peas.data.labels import read_labels
    from peas.models import EAT, SSAST, AudioMAE, BEATs, Encoder
    from peas.models.weights import family_of, load_pretrained, read_state
    from peas.models.weights.checking import malformed
    from peas.models.weights.writing import write_atomic
    from peas.tasks.classification import Classification

    state = read_state(file)
    with malformed(file):
        family = family_of(state)
        info = family.describe(state, file)
    default = (10, 10) if info.patch == (16, 16) else (info.patch[0], 1)
    step = info.stride or stride or default
    if stride and stride != step:
        raise CheckpointError(
            f"{file} has patches at steps of {step} (mel bins, frames), and --stride is {stride}: "
            "leave --stride out"
        )
    labels = read_labels(dataset)
    if info.num_classes and info.num_classes != len(labels):
        raise CheckpointError(
            f"{file} has {info.num_classes} classes and {dataset} {len(labels)}: choose another "
            "--dataset"
        )
    settings: dict[str, Any] = {"size": info.size, "patch": info.patch}
    kinds: dict[str, type[Encoder]] = {"SSAST": SSAST, "AudioMAE": AudioMAE}
    if family.name in kinds:
        settings["stride"] = step
    kinds |= {"BEATs": BEATs, "EAT": EAT}
    if pooling is not None:
        if family.name == "BEATs" and pooling != "mean":
            raise CheckpointError(f"{file}: BEATs has no class token: leave --pooling out")
        settings |= {} if family.name == "BEATs" else {"pooling": pooling}
    mean, std, frames = STATISTICS[dataset]
    front_end = KaldiLogMel(frames, mean, std)
    if family.name == "BEATs":
        # Its statistics are AudioSet's for every set; those above are another front end's.
        front_end = BEATsLogMel(frames)
    task = Classification(
        pretrained=None,
        encoder=kinds[family.name](**settings),
        front_end=front_end,
        loss=loss,
        labels=labels,
        multi_label=dataset == "audioset",
    )
    task.build(initialise=False)
    say(str(load_pretrained(task.model, file)))
    if not out:
        return
    if not info.num_classes:
        raise PeasError(
            f"{file} has no classifier, so its checkpoint could score nothing. Fine-tune it: "
            f"`peas fit --config … --model.init_args.pretrained {file}`"
        )
    content = {
        "state_dict": task.state_dict(),
        "hyper_parameters": dict(task.hparams),
        "pytorch-lightning_version": lightning.__version__,
    }
    write_atomic(content, _new_file(out))
    say(f"written: {out}")
