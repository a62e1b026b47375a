"""`peas.load`: a model from whatever holds one."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

from peas.audio.frontend import BEATsLogMel, FrontEnd, KaldiLogMel
from peas.data.labels import ClassTable, read_labels
from peas.errors import CheckpointError, ConfigError
from peas.inference.model import AudioModel
from peas.models.encoder import Encoder
from peas.models.weights import family_of, read_state
from peas.models.weights.checking import check_run, malformed
from peas.models.weights.exported import (
    CONFIG,
    WEIGHTS,
    exported_folder,
    read_config,
    read_weights,
)
from peas.models.weights.importer import CLASS_ORDER, Description
from peas.parts import make
from peas.tasks.classification import Classification

HUB = "hf://"
HUB_FILES = ["*.json", "*.safetensors", "*.txt", "README.md"]
"""What is downloaded."""
CHECKPOINTS = ("checkpoints/best.ckpt", "checkpoints/last.ckpt", "best.ckpt", "last.ckpt")
"""Of a run's folder, the first that exists is taken."""


class Corpus(NamedTuple):
    """What an official fine-tuned file does not say of its data set."""

    mean: float
    std: float
    frames: int


STATISTICS = {
    "esc50": Corpus(-6.6268077, 5.358466, 512),
    "speech_commands_v2": Corpus(-6.845978, 5.5654526, 128),
    "audioset": Corpus(-4.2677393, 4.5689974, 1024),
}
"""Statistics of the official recipes."""
PRETRAINED = "audioset"
"""Data set of official pretrained files."""
OVERLAPPING = ("SSAST", "AudioMAE")
"""Encoders whose patches may overlap."""
CLASSIFICATION = (None, "peas.tasks.Classification", "peas.tasks.classification.Classification")
"""Tasks of fine-tuning that a checkpoint may name."""


def load(
    path: str | Path,
    device: str | torch.device | None = None,
    *,
    input_frames: int | None = None,
    modules: Sequence[str] = (),
) -> AudioModel:
    """A model, ready for sound.

    Args:
        path: A run's checkpoint; a run's folder (its best checkpoint, or else its last); a folder
            that `peas export --format hf` wrote; an official file of SSAST or AudioMAE;
            `hf://owner/name` or `hf://owner/name@revision` on the Hugging Face hub.
        device: Where to; None = the GPU, if there is one.
        input_frames: Frames T of the model's input, if not those of its training: positions are
            cut or interpolated, as for `pretrained`.
        modules: Modules besides `peas` whose parts a checkpoint may name, each with those below it.

    Raises:
        CheckpointError: There is no model, or not one that may be loaded.
    """
    text = str(path)
    if text.startswith(HUB):
        folder = _download(text)
        model = _folder(folder, text, input_frames, modules)
    elif Path(path).is_dir():
        model = _folder(Path(path), text, input_frames, modules)
    else:
        model = _file(Path(path), input_frames, modules)
    return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()


def _download(url: str) -> Path:
    name, _, revision = url.removeprefix(HUB).partition("@")
    try:
        return Path(
            snapshot_download(
                name,
                revision=revision or None,
                allow_patterns=HUB_FILES,
            )
        )
    except (HFValidationError, ValueError) as error:
        raise CheckpointError(f"{url}: is no hf://owner/name[@revision] ({error})") from error
    except (LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"{url}: cannot be downloaded, and is not in the cache ({_first_line(error)}): check "
            "the name and the network, or give a folder"
        ) from error


def run_checkpoint(folder: Path) -> Path | None:
    """The checkpoint that is taken of a run's folder; None if there is none."""
    files = (folder / name for name in CHECKPOINTS)
    return next((file for file in files if file.is_file()), None)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _folder(
    folder: Path, where: str, input_frames: int | None, modules: Sequence[str]
) -> AudioModel:
    if exported_folder(folder):
        return _exported(folder, where, input_frames, modules)
    if checkpoint := run_checkpoint(folder):
        return _file(checkpoint, input_frames, modules)
    if (folder / WEIGHTS).is_file():
        return _file(folder, input_frames, modules)
    raise CheckpointError(
        f"{where}: holds neither {CONFIG} and {WEIGHTS} (an exported model) nor "
        "checkpoints/best.ckpt or last.ckpt (a run)"
    )


def _exported(
    folder: Path, where: str, input_frames: int | None, modules: Sequence[str]
) -> AudioModel:
    """The model of a folder that `peas export --format hf` wrote."""
    config = read_config(folder, where)
    state = read_weights(folder, where, config)
    found = Found(
        encoder=config["encoder"],
        front_end=config["front_end"],
        labels=config.get("labels") or [],
        scores=config.get("scores", "softmax"),
        origin=config.get("origin") or {},
    )
    model = found.model(where, None, modules)
    for key, value in model.state_dict().items():
        if key in state and state[key].is_floating_point() != value.is_floating_point():
            raise CheckpointError(
                f"{where}: {WEIGHTS}: {key} is of type {state[key].dtype}, and should be "
                f"{value.dtype}; export or download it again"
            )
    with malformed(f"{where}: {WEIGHTS}"):
        model.load_state_dict(state)
    if input_frames in (None, model.encoder.frames):
        return model
    weights = {f"model.{key}": value for key, value in model.encoder.state_dict().items()}
    resized = found.model(where, input_frames, modules)
    with malformed(where):
        resized.encoder.import_weights({"state_dict": weights}, where)
    return resized


def _file(path: Path, input_frames: int | None, modules: Sequence[str]) -> AudioModel:
    """The model of a run's checkpoint, or of an official file."""
    content, where = read_state(path, pretrained=True), str(path)
    settings: dict[str, Any] = {}
    if "hyper_parameters" in content:
        check_run(content, where)
        settings = content["hyper_parameters"]
        found = _run(settings, where)
    else:
        content, names = in_known_order(content, where)
        found = official(content, where, names)
    found.origin["file"] = path.name
    if isinstance(content.get("epoch"), int):
        found.origin["epoch"] = content["epoch"]
    if settings and found.labels and input_frames is None:
        # Exactly what was trained, a fitted pixel head included.
        task = Classification.restore(content, where, modules=modules)
        return AudioModel(task.model, task.front_end, found.labels, found.scores, found.origin)
    model = found.model(where, input_frames, modules)
    with malformed(where):
        model.encoder.import_weights(content, where)
    return model


def _run(settings: dict[str, Any], where: str) -> "Found":
    """What a run's checkpoint says of its model."""
    missing = [key for key in ("encoder", "front_end") if not settings.get(key)]
    if missing:
        raise CheckpointError(
            f"{where}: hyper_parameters: has no {' and no '.join(missing)}, so there is no model "
            "in it: give a checkpoint of `peas fit`"
        )
    named = settings.get("_class_path")
    tuned = "objectives" not in settings
    if tuned and named not in CLASSIFICATION:
        raise CheckpointError(
            f"{where}: is of {named}, and only peas.tasks.Classification and Pretraining can be "
            "loaded"
        )
    return Found(
        encoder=settings["encoder"],
        front_end=settings["front_end"],
        labels=list(settings.get("labels") or []) if tuned else [],
        scores="sigmoid" if settings.get("loss") == "bce" else "softmax",
        origin={"task": "fine-tuning" if tuned else "pretraining"},
    )


@dataclass
class Found:
    """What a file says of its model.

    Attributes:
        encoder: Class path and settings.
        front_end: Likewise.
        labels: Names of the classes; empty without a classifier.
        scores: `softmax` or `sigmoid`.
        origin: What else is known.
    """

    encoder: dict[str, Any]
    front_end: dict[str, Any]
    labels: list[str]
    scores: Literal["softmax", "sigmoid"]
    origin: dict[str, Any]

    def model(self, where: str, input_frames: int | None, modules: Sequence[str]) -> AudioModel:
        """The model with fresh weights."""
        parts = {}
        for name, base in (("encoder", Encoder), ("front_end", FrontEnd)):
            parts[name] = make(getattr(self, name), base, where=f"{where}: {name}", modules=modules)
        encoder, front_end = cast(Encoder, parts["encoder"]), cast(FrontEnd, parts["front_end"])
        if input_frames is not None:
            if input_frames < 1:
                raise ConfigError(f"input_frames is {input_frames}: give 1 or more")
            front_end.build(frames=input_frames)
        try:
            with malformed(where):
                return AudioModel(encoder, front_end, self.labels, self.scores, self.origin)
        except ConfigError as error:
            raise CheckpointError(f"{where}: {error}") from error


def in_known_order(content: dict[str, Any], where: str) -> tuple[dict[str, Any], list[str] | None]:
    """An official file without a class order of its own, and its classes if it names them.

    BEATs's fine-tuned files list AudioSet's machine ids in an order of their own; the classifier
    is brought into that of the official table. Other classes stay as they are.

    Args:
        content: Of `read_state`.
        where: The file, for errors.

    Raises:
        CheckpointError: The list does not name each class once.
    """
    order, model = content.get(CLASS_ORDER), content.get("model")
    heads = ("predictor.weight", "predictor.bias")
    if order is None or not isinstance(model, dict) or not all(key in model for key in heads):
        return content, None
    count = len(model[heads[1]])
    named = [order.get(number) for number in range(count)] if isinstance(order, dict) else []
    if len(order) != count or len({*named} - {None}) != count:
        raise CheckpointError(
            f"{where}: {CLASS_ORDER} names {len({*named} - {None})} of {count} classes, so their "
            "order is not known; get the file again"
        )
    rest = {key: value for key, value in content.items() if key != CLASS_ORDER}
    table = ClassTable.shipped()
    if {*named} != {*table.mids}:
        return rest, [str(name) for name in named]
    rows = torch.tensor([named.index(mid) for mid in table.mids])
    return {**rest, "model": model | {key: model[key][rows] for key in heads}}, table.names


def official(content: dict[str, Any], where: str, names: list[str] | None = None) -> Found:
    """What an official file contains, and what its recipe says of the rest.

    A fine-tuned file does not name its data: that follows from the number of its classes.

    Args:
        content: Of `read_state`.
        where: The file, for errors.
        names: Of the classes, if the file says them.

    Raises:
        CheckpointError: It is of no known family, or of a data set that is not known.
    """
    with malformed(where):
        family = family_of(content)
        info = family.describe(content, where)
    by_classes = {len(read_labels(name)): name for name in STATISTICS}
    if info.num_classes and info.num_classes not in by_classes and names is None:
        listed = ", ".join(f"{name} {count}" for count, name in by_classes.items())
        raise CheckpointError(
            f"{where}: has {info.num_classes} classes, and of the known sets of labels {listed}: "
            "make a checkpoint of it with its own, one a line, by `peas import --labels FILE`"
        )
    known = by_classes.get(info.num_classes, PRETRAINED)
    mean, std, frames = STATISTICS[known]
    if names is None:
        names = read_labels(known) if info.num_classes else []
    if not info.num_classes:
        step = (info.stride or info.patch)[1]
        frames = (info.grid[1] - 1) * step + info.patch[1] if info.grid[1] else info.frames
    front_end = official_front_end(family.name, Corpus(mean, std, frames))
    settings = encoder_settings(family.name, info)
    return Found(
        encoder={"class_path": f"peas.models.{family.name}", "init_args": settings},
        front_end=front_end.spec(),
        labels=names,
        scores="sigmoid" if known == "audioset" else "softmax",
        origin={"task": info.kind, "layout": "official"},
    )


def official_front_end(family: str, corpus: Corpus) -> FrontEnd:
    """Front end of a family's official code.

    Args:
        family: Name of the encoder's class.
        corpus: Statistics and length of the data. BEATs has its own statistics for every set.
    """
    if family == "BEATs":
        return BEATsLogMel(corpus.frames)
    return KaldiLogMel(corpus.frames, corpus.mean, corpus.std)


def encoder_settings(
    family: str, info: Description, stride: tuple[int, int] | None = None
) -> dict[str, Any]:
    """Settings of the encoder that an official file fills.

    Args:
        family: Name of the encoder's class.
        info: What the file contains.
        stride: Mel bins and frames from patch to patch of SSAST, which its files do not say.
    """
    settings = {"size": info.size, "patch": list(info.patch)}
    if family not in OVERLAPPING:
        return settings
    default = (10, 10) if info.patch == (16, 16) else (info.patch[0], 1)
    return {**settings, "stride": list(info.stride or stride or default)}
