"""`peas export` and `peas import`: checkpoints to and from files of other tools."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from peas.errors import CheckpointError, NoReconstruction, PeasError, UsageError, printable, say

if TYPE_CHECKING:
    from torch import Tensor

    from peas.inference.loading import Corpus
    from peas.models.weights.importer import Layout
    from peas.tasks.classification import Classification

ENDINGS = (".pth", ".pt", ".ckpt", ".bin")
"""Extensions of PyTorch files."""


def export(
    run: str | None = None,
    *,
    out: str,
    checkpoint: str | None = None,
    format: Literal["official", "hf", "onnx", "torch"] = "official",
    layout: Literal["pretrained", "fine-tuned"] = "fine-tuned",
    output: Literal["scores", "embeddings"] | None = None,
    opset: int | None = None,
    push: str | None = None,
    allow_module: list[str] | None = None,
) -> None:
    """Write a trained model as a file for other tools.

    What is written is loaded and compared with the model before it gets its name.

    Args:
        run: Folder of a run, its best.ckpt or last.ckpt, or whatever else `peas.load` takes.
        out: File to write; for hf a folder.
        checkpoint: The same as RUN.
        format: `official`, the layout of the encoder's own code; `hf`, a folder
            for the Hugging Face hub, with a model card; `onnx`, waveform to scores or embeddings;
            `torch`, the same as a program of torch.export.
        layout: What an official file is for. `pretrained`, for the official fine-tuning code, has
            the encoder and the pretraining heads, or decoder; `fine-tuned` has encoder and
            classifier.
        output: Of onnx and torch; default scores, or embeddings if there is no classifier.
        opset: Version of ONNX's operators; default 23, at least 18.
        push: Upload the hf folder to this OWNER/NAME of the Hugging Face hub.
        allow_module: Module whose parts the checkpoint may name, with those below it, besides
            `peas`; its code is executed. May be repeated.
    """
    if bool(run) == bool(checkpoint):
        raise UsageError("give RUN, or the same as `--checkpoint`, and not both")
    source = run or checkpoint or ""
    for name, given, fit in (
        ("output", output, ("onnx", "torch")),
        ("opset", opset, ("onnx",)),
        ("push", push, ("hf",)),
    ):
        if given is not None and format not in fit:
            raise UsageError(f"`--{name}` is for --format {' and '.join(fit)}, not {format}")
    if format == "official":
        _export_official(source, out, layout)
    elif format == "hf":
        _export_folder(source, out, push, allow_module or [])
    else:
        _export_graph(source, out, format, output, opset, allow_module or [])


def _export_official(
    checkpoint: str, out: str, layout: Literal["pretrained", "fine-tuned"]
) -> None:
    import torch

    from peas.inference.export import new_path
    from peas.inference.loading import run_checkpoint
    from peas.models.weights import read_state
    from peas.models.weights.checking import check_run, malformed
    from peas.models.weights.writing import write_atomic

    file = new_path(out)
    if file.suffix not in ENDINGS:
        raise PeasError(
            f"{out}: an official file is a PyTorch file: let --out end in {' or '.join(ENDINGS)}"
        )
    checkpoint = str(run_checkpoint(Path(checkpoint)) or checkpoint)
    content = read_state(checkpoint)
    check_run(content, checkpoint)
    try:
        with malformed(checkpoint):
            state, wrapper, beside = official(content, layout, checkpoint)
    except NoReconstruction as error:
        raise NoReconstruction(f"{checkpoint}: {error}") from error
    written = {wrapper: state, **beside} if wrapper else state
    write_atomic(written, file)
    again = read_state(file)
    stored = again[wrapper] if wrapper else again
    if stored.keys() != state.keys() or not all(torch.equal(stored[k], state[k]) for k in state):
        file.unlink()
        raise PeasError(f"{out}: read again it has other tensors, so it was removed: try again")
    say(f"{out}: {len(state)} tensors, {layout} layout; read again: equal")
    if layout == "fine-tuned":
        labels = ", ".join(map(printable, _labels(content)))
        say(f"labels, in the order of the classifier: {labels}")


def _export_folder(source: str, out: str, push: str | None, modules: list[str]) -> None:
    from peas.inference.card import card
    from peas.inference.export import export_folder, new_path
    from peas.inference.hub import check_name, upload
    from peas.inference.loading import load

    folder = new_path(out)
    if push is not None:
        check_name(push)
    model = load(source, "cpu", modules=modules)
    difference = export_folder(model, folder, card(model, source, folder, push), modules)
    say(f"{out}: written; loaded again, the outputs differ by {difference:g} at most")
    if push is not None:
        say(f"uploaded: {upload(folder, push)}")


def _export_graph(
    source: str,
    out: str,
    format: Literal["onnx", "torch"],
    output: Literal["scores", "embeddings"] | None,
    opset: int | None,
    modules: list[str],
) -> None:
    from peas.inference.export import OPSET, TOLERANCES, export_onnx, export_torch, new_path
    from peas.inference.loading import load

    ending = {"onnx": ".onnx", "torch": ".pt2"}[format]
    file = new_path(out)
    if file.suffix != ending:
        raise PeasError(f"{out}: let --out end in {ending} for --format {format}")
    model = load(source, "cpu", modules=modules)
    gives = output or ("scores" if model.labels else "embeddings")
    if format == "onnx":
        difference = export_onnx(model, file, output=gives, opset=OPSET if opset is None else opset)
    else:
        difference = export_torch(model, file, output=gives)
    width = len(model.labels) if gives == "scores" else model.dim
    say(
        f"{out}: waveform [B, S] at {model.sample_rate} Hz to {gives} [B, {width}], of the first "
        f"{model.window_ms / 1000:g} s; beside the model the outputs differ by {difference:.2g} at "
        f"most ({TOLERANCES[format]:g} is allowed)"
    )


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
    labels: str | None = None,
    mean: float | None = None,
    std: float | None = None,
    frames: int | None = None,
    stride: tuple[int, int] | None = None,
    pooling: Literal["mean", "cls"] | None = None,
    loss: Literal["ce", "bce"] = "ce",
    allow_module: list[str] | None = None,
) -> None:
    """Make a checkpoint of an official file, or of an exported folder.

    Without --out it only reports the file's keys. A pretrained file or folder needs no import: give
    it to `--model.init_args.pretrained`.

    Args:
        file: Official file of SSAST, AudioMAE, BEATs or EAT, the folder of a model hub, or a folder
            of `peas export --format hf`, which says itself what the options below are for.
        out: Checkpoint to write, for `peas test`, `peas tag` and the like.
        dataset: Labels and statistics.
        labels: File of the classes' names, one a line, in place of those of --dataset.
        mean: Mean of the log-mels, in place of that of --dataset.
        std: Their standard deviation, likewise.
        frames: Frames of the model's input, likewise.
        stride: Mel bins and frames from patch to patch of SSAST; default 10 10.
        pooling: How tokens become one vector; default as the encoder's fine-tuning: `cls` for
            EAT, `mean` for the others, and BEATs has no other.
        loss: Softmax (ce) or sigmoid (bce) scores.
        allow_module: Module whose parts an exported folder may name, with those below it, besides
            `peas`; its code is executed. May be repeated.
    """
    from peas.data.labels import read_labels
    from peas.inference.export import new_path
    from peas.inference.loading import STATISTICS, Corpus, in_known_order
    from peas.models.weights import read_state
    from peas.models.weights.checking import check_run, malformed
    from peas.models.weights.exported import exported_folder
    from peas.models.weights.writing import write_atomic
    from peas.tasks.classification import Classification

    target = new_path(out) if out else None
    content = read_state(file)
    if exported_folder(Path(file)):
        check_run(content, file)
        if _labels(content):
            task = Classification.restore(content, file, modules=allow_module or [])
            say(f"{file}: {len(content['state_dict'])} tensors, all used")
        elif target is None:
            say(f"{file}: {len(content['state_dict'])} tensors, without a classifier")
        classes = len(_labels(content))
    else:
        statistics = STATISTICS[dataset]
        corpus = Corpus(
            statistics.mean if mean is None else mean,
            statistics.std if std is None else std,
            statistics.frames if frames is None else frames,
        )
        if corpus.frames < 1 or corpus.std <= 0:
            raise UsageError("`--frames` and `--std` must be above 0")
        content, own = in_known_order(content, file)
        names = _label_file(Path(labels)) if labels else own or read_labels(dataset)
        task, classes = _official_task(
            content, file, labels or dataset, names, corpus, stride, pooling, loss
        )
        with malformed(file):
            say(str(task.model.import_weights(content, file)))
    if target is None:
        return
    if not classes:
        raise PeasError(
            f"{file} has no classifier, so its checkpoint could score nothing. Fine-tune it: "
            f"`peas fit --config … --model.init_args.pretrained {file}`"
        )
    import lightning

    made = {
        "state_dict": task.state_dict(),
        "hyper_parameters": dict(task.hparams),
        "pytorch-lightning_version": lightning.__version__,
    }
    write_atomic(made, target)
    say(f"written: {out}")


def _official_task(
    content: dict[str, Any],
    file: str,
    source: str,
    names: list[str],
    corpus: Corpus,
    stride: tuple[int, int] | None,
    pooling: Literal["mean", "cls"] | None,
    loss: Literal["ce", "bce"],
) -> tuple[Classification, int]:
    """A task with fresh weights that an official file fills, and the file's number of classes.

    `source` is where the names of its classes are from.
    """
    from peas.inference.loading import STATISTICS, encoder_settings, official_front_end
    from peas.models import EAT, SSAST, AudioMAE, BEATs, Encoder
    from peas.models.weights import family_of
    from peas.models.weights.checking import malformed
    from peas.tasks.classification import Classification

    with malformed(file):
        family = family_of(content)
        info = family.describe(content, file)
    settings = encoder_settings(family.name, info, stride)
    if stride and list(stride) != settings.get("stride"):
        raise CheckpointError(
            f"{file} has patches at steps of {tuple(settings.get('stride', info.patch))} (mel "
            f"bins, frames), and --stride is {stride}: leave --stride out"
        )
    if pooling is not None:
        if family.name == "BEATs" and pooling != "mean":
            raise CheckpointError(f"{file}: BEATs has no class token: leave --pooling out")
        settings |= {} if family.name == "BEATs" else {"pooling": pooling}
    if info.num_classes and info.num_classes != len(names):
        raise CheckpointError(
            f"{file} has {info.num_classes} classes and {source} {len(names)}: choose "
            "another --dataset, or give the names, one a line, by --labels FILE"
        )
    kinds: dict[str, type[Encoder]] = {
        "SSAST": SSAST,
        "AudioMAE": AudioMAE,
        "BEATs": BEATs,
        "EAT": EAT,
    }
    task = Classification(
        pretrained=None,
        encoder=kinds[family.name](**settings),
        front_end=official_front_end(family.name, corpus),
        loss=loss,
        labels=names,
        multi_label=source == "audioset" or (loss == "bce" and source not in STATISTICS),
    )
    task.build(initialise=False)
    return task, info.num_classes


def _label_file(file: Path) -> list[str]:
    """Names of classes, one a line.

    Raises:
        PeasError: The file cannot be read, or a line is empty or there twice.
    """
    try:
        names = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, ValueError) as error:
        raise PeasError(f"--labels {file}: cannot be read as UTF-8 text ({error})") from error
    for number, name in enumerate(names, 1):
        if not name or name in names[: number - 1]:
            what = f"repeats {name!r}" if name else "is empty"
            raise PeasError(
                f"--labels {file}: line {number} {what}: give one name of a class a line"
            )
    return names
