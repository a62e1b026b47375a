"""Tasks and encoders from flat tables of settings, as tests like to name them."""

from importlib import import_module
from typing import Any

from peas.audio.frontend import FrontEnd
from peas.masking import PatchMasking
from peas.models import SSAST, AudioMAE, Encoder
from peas.objectives import Objective
from peas.parts import Part
from peas.recipes import Recipe
from peas.tasks import Classification, Pretraining
from peas.utils import migration

BASES: dict[str, type[Part]] = {
    "encoder": Encoder,
    "front_end": FrontEnd,
    "recipe": Recipe,
    "masking": PatchMasking,
    "eval_masking": PatchMasking,
}


def part(value: Any, base: type[Part]) -> Any:
    """The part of a table, made as a config makes it, or one that is made already."""
    if not isinstance(value, dict):
        return value
    module, _, name = value["class_path"].rpartition(".")
    cls = getattr(import_module(module), name)
    assert issubclass(cls, base)
    return cls(**value["init_args"])


def parts(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings whose tables with class paths are parts."""
    made = {
        key: part(value, BASES[key]) if key in BASES else value for key, value in settings.items()
    }
    if "objectives" in made:
        objectives = made["objectives"].items()
        made["objectives"] = {name: part(value, Objective) for name, value in objectives}
    return made


def migrated(path: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Flat settings of release 0.1, with today's names of the recipe, as today's parts."""
    new = ("base_batch_size", "head_lr_mult")
    recipe = {key: settings.pop(key) for key in new if key in settings}
    _, moved = migration.task(path, settings)
    if recipe:
        moved["recipe"]["init_args"] |= recipe
    return parts(moved)


def masked_task(**settings: Any) -> Pretraining:
    """A task whose objectives are named by their weights: `reconstruction=1.0`, and so on."""
    return Pretraining(**migrated(migration.MAE[0], settings))


def ssast_task(**settings: Any) -> Pretraining:
    """SSAST's pretraining, with `masked=400`, `objective="joint"`, and so on."""
    return Pretraining(**migrated(migration.SSAST[0], settings))


def classification(pretrained: str | None = "", **settings: Any) -> Classification:
    """Fine-tuning, with `encoder="audiomae"`, `lr=1e-3`, and so on."""
    settings["pretrained"] = pretrained
    return Classification(**migrated(migration.CLASSIFICATION[0], settings))


def built_ssast(
    size: str = "base",
    *,
    num_classes: int = 0,
    frames: int = 1024,
    mels: int = 128,
    pretrain: tuple[int, int] | None = None,
    **settings: Any,
) -> SSAST:
    """A built SSAST whose patches do not overlap unless `stride` says so."""
    settings.setdefault("stride", settings.get("patch", (16, 16)))
    model = SSAST(size, **settings).build(frames, mels, num_classes)  # type: ignore[arg-type]
    if pretrain is not None:
        model.set_pretraining_grid(*pretrain)
    return model


def built_audiomae(
    size: str = "base",
    *,
    num_classes: int = 0,
    frames: int = 1024,
    mels: int = 128,
    decoder: Any = None,
    pixels: bool = True,
    norm_pix: bool = True,
    **settings: Any,
) -> AudioMAE:
    """A built AudioMAE, with a decoder where one is given."""
    if decoder is not None:
        kind, *rest = decoder
        names = ("width", "depth", "heads", "window", "first_shift")
        settings |= {"decoder": kind}
        settings |= {f"decoder_{name}": value for name, value in zip(names, rest, strict=True)}
    model = AudioMAE(size, **settings)  # type: ignore[arg-type]
    needs = {"decoder", "pixels"} if pixels else {"decoder"}
    wanted = needs if decoder is not None else set()
    return model.build(frames, mels, num_classes, needs=wanted, norm_pix=norm_pix)  # type: ignore[arg-type]
