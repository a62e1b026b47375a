"""Every YAML is what the command line can read, and the paper's rows hold the paper's numbers."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from jsonargparse import Namespace
from made import parts
from toys import data, quiet_trainer

from peas import tasks
from peas.cli.results import differences
from peas.parts import class_path
from peas.recipes import AudioMAERecipe
from peas.recipes.learning_rate import global_lr

CONFIGS = Path(__file__).parents[2] / "configs"


class Setup(NamedTuple):
    """A column of the PEAS paper's Table I, and what SSAST's recipe adds."""

    data: str
    frames: int
    lr: float
    batch_size: int
    epochs: int
    loss: str
    max_time: int
    max_freq: int
    mixup: float
    warmup_steps: int
    decay_start: int


SETUPS = {
    "esc50": Setup("ESC50", 512, 1e-4, 10, 25, "ce", 96, 24, 0.0, 0, 6),
    "speech_commands": Setup("SpeechCommands", 128, 2.5e-4, 16, 30, "bce", 48, 48, 0.6, 1000, 5),
}
CLASSES = {"esc50": 50, "speech_commands": 35}

ROWS = {
    # Table III, and for the first and the last row Table II. Figures: test_paper_figures.py.
    "conventional": ("Conventional (1, 1)", "PEAS II, III"),
    "random_3x3": ("Random Masking (3, 3)", "PEAS III"),
    "random_2x2": ("Random Masking (2, 2)", "PEAS III"),
    "random_1x1": ("Random Masking (1, 1)", "PEAS III"),
    "peas_3x3": ("PEAS (3, 3)", "PEAS III"),
    "peas_2x2": ("PEAS (2, 2)", "PEAS III"),
    "peas_1x1": ("PEAS (1, 1)", "PEAS II, III"),
}
STRATEGIES = {"conventional": "SpecAugment", "random": "RandomMasking", "peas": "PEAS"}
EXAMPLES = {
    "esc10_mixtures_tiny": ("AudioSet", "bce"),
    "fsdd_tiny": ("AudioFolder", "ce"),
    "urbansound8k_tiny": ("AudioFolder", "ce"),
}
NAMES = [f"{data}_{row}" for data in SETUPS for row in ROWS]
# The recipe of Speech Commands on the clips of SUPERB's keyword spotting: rows of no paper.
KEYWORDS = ["conventional", "peas_1x1"]
# SSAST's own recipe for AudioSet: learning rate, epochs and draws of an epoch.
AUDIOSET = {"20k": (5e-5, 25, None), "2m": (1e-5, 50, 200_000)}


class MaeSetup(NamedTuple):
    """A data set in AudioMAE's recipe, and in the SupMAM-CLAP paper's Table 1."""

    data: str
    epochs: int
    warmup: int
    lr: float
    batch_size: int
    rate: float
    """What comes of the rate at this global batch."""
    loss: str
    mixup: float
    frames: int
    masks: tuple[int, int]
    """Frames and mel bins of AudioMAE's SpecAugment."""
    literal: tuple[int, int]
    """A fifth of the frames and of the 128 mel bins."""
    statistics: tuple[float, float]
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    roll_gain: str = "official"


AS, SC = (-4.2677393, 4.5689974), (-6.845978, 5.5654526)
MAE_SETUPS = {
    "audioset_2m": MaeSetup(
        *("AudioSet", 100, 10, 2e-4, 256, 2e-4),
        *("bce", 0.5, 1024, (192, 48), (204, 25), AS),
    ),
    "audioset_20k": MaeSetup(
        *("AudioSet", 60, 4, 1e-3, 32, 1.25e-4),
        *("bce", 0.5, 1024, (192, 48), (204, 25), AS),
    ),
    "esc50": MaeSetup(
        *("ESC50", 50, 5, 1e-3, 64, 2.5e-4),
        *("ce", 0.0, 512, (96, 24), (102, 25), (-6.6268077, 5.358466)),
        # AudioMAE's script for it, which drops no patches either.
        *(0.05, 0.1, "none"),
    ),
    "speech_commands": MaeSetup(
        *("SpeechCommands", 60, 4, 1e-3, 256, 1e-3),
        *("bce", 0.5, 128, (48, 48), (25, 25), SC),
    ),
    "speech_commands_v1_12": MaeSetup(
        *("SpeechCommands", 10, 1, 1e-3, 256, 1e-3),
        *("bce", 0.5, 128, (48, 48), (25, 25), (-6.702, 5.448)),
    ),
}
MAE_SYSTEMS = {
    "audiomae": ("AudioMAE", "pretrained.pth"),
    "audiomae_rerun": ("AudioMAE†", "runs/audiomae_rerun/checkpoints/last.ckpt"),
    "mam_clap": ("MAM-CLAP", "runs/mam_clap/checkpoints/last.ckpt"),
    "supmam": ("SupMAM", "runs/supmam/checkpoints/last.ckpt"),
    "supmam_clap": ("SupMAM-CLAP", "runs/supmam_clap/checkpoints/last.ckpt"),
}
MAE_ROWS = (*(f"{system}_{{}}" for system in MAE_SYSTEMS), "supmam_clap_{}_specaugment")
# Of EAT's scripts and of a reproduction of BEATs: epochs, warm-up, rate and its end, batch, mixup,
# masks, loss, label smoothing, noise and roll, gain.
TODAY = {
    ("eat", "esc50"): (118, 12, 5e-5, 1e-6, 48, 0.0, (204, 51), "ce", 0.1, False, "paper"),
    ("eat", "audioset_20k"): (93, 9, 5e-5, 1e-6, 48, 0.9, (204, 25), "bce", 0.0, False, "paper"),
    ("eat", "speech_commands"): (
        120,
        12,
        2e-4,
        1e-6,
        256,
        0.9,
        (25, 25),
        "bce",
        0.0,
        True,
        "paper",
    ),
    ("beats", "esc50"): (480, 24, 1e-4, 5e-6, 128, 0.0, (30, 0), "ce", 0.1, False, "paper"),
    ("beats", "audioset_20k"): (
        164,
        16.4,
        3e-5,
        5e-6,
        80,
        0.5,
        (60, 0),
        "bce",
        0.0,
        False,
        "paper",
    ),
    ("beats", "speech_commands"): (
        60,
        4,
        1e-4,
        5e-6,
        256,
        0.5,
        (48, 48),
        "bce",
        0.0,
        False,
        "official",
    ),
}
# Rows of no paper.
SCRATCH = ("audioset_20k", "esc50")
# Of SSAST's pretraining: size, patch, batch, rate and iterations between two evaluations.
SSAST_PRETRAINING: dict[str, tuple[str, tuple[int, int], int, float, int]] = {
    "ssast": ("base", (16, 16), 24, 1e-4, 4000),
    "ssast_frame": ("base", (128, 2), 24, 1e-4, 4000),
    "ssast_tiny": ("tiny", (16, 16), 120, 5e-4, 800),
}
PRETRAIN = sorted(path.stem for path in (CONFIGS / "pretrain").glob("*.yaml"))
OVERLAYS = sorted(path.stem for path in (CONFIGS / "overlays").glob("*.yaml"))


class Pretraining(NamedTuple):
    """A file of configs/pretrain for the SupMAM-CLAP paper's Table 1."""

    row: str
    weights: dict[str, float]
    mask_ratio: float
    decoder: tuple[str, int, int, int]
    """Kind, width, depth, heads."""
    epochs: int
    warmup: int
    batch_size: int
    rate: float
    """What comes of the rate at this global batch."""


LOCAL = ("local", 512, 16, 16)
ONE_BLOCK = ("local", 512, 1, 16)
PRETRAINING = {
    "audiomae": Pretraining("AudioMAE", {"reconstruction": 1.0}, 0.8, LOCAL, 33, 3, 512, 4e-4),
    "audiomae_rerun": Pretraining(
        "AudioMAE†", {"reconstruction": 1.0}, 0.8, LOCAL, 32, 3, 128, 1e-4
    ),
    "mam_clap": Pretraining("MAM-CLAP", {"distillation": 1.0}, 0.2, ONE_BLOCK, 32, 3, 128, 1e-4),
    "supmam": Pretraining(
        *("SupMAM", {"reconstruction": 1.0, "classification": 0.01}, 0.4, LOCAL),
        *(32, 3, 128, 1e-4),
    ),
    "supmam_clap": Pretraining(
        *("SupMAM-CLAP", {"distillation": 1.0, "classification": 1e-4}, 0.2, ONE_BLOCK),
        *(32, 3, 128, 1e-4),
    ),
    "mae_ast": Pretraining(
        *("MAE-AST", {"reconstruction": 10.0, "contrastive": 1.0}, 0.75, ("global", 768, 2, 12)),
        *(32, 3, 52, 1e-4),
    ),
    "maskspec": Pretraining(
        *("MaskSpec", {"reconstruction": 1.0}, 0.75, ("global", 512, 8, 16)),
        *(400, 40, 512, 2e-3),
    ),
    "msm_mae": Pretraining(
        *("MSM-MAE", {"reconstruction": 1.0}, 0.75, ("global", 384, 4, 6)),
        *(32, 3, 512, 4e-4),
    ),
}

Parse = Callable[..., Namespace]


class _Built(Exception):
    """Carries the parser out of a constructor."""


@pytest.fixture(scope="module")
def parse() -> Parse:
    """The real parser of `peas fit`; nothing is instantiated. Building it is the slow part."""
    from peas.cli.main import SETTINGS, PeasCLI

    class Reader(PeasCLI):
        """Stops where LightningCLI would read its arguments and go on to run them."""

        def parse_arguments(self, parser: Any, args: Any) -> None:
            raise _Built(parser)

    with pytest.raises(_Built) as caught:
        Reader(**SETTINGS)
    built = caught.value.args[0]

    def parsed(*argv: object) -> Namespace:
        config: Namespace = built.parse_args(["fit", *map(str, argv)]).fit
        return config

    return parsed


def finetune(name: str) -> Path:
    return CONFIGS / "finetune" / f"{name}.yaml"


def parts_of(config: Namespace, encoder: str, recipe: str) -> tuple[Any, Any, Any]:
    """Settings of the task, its encoder and its recipe, which are of these classes."""
    model = config.model.init_args
    assert model.encoder.class_path == f"peas.models.{encoder}"
    assert model.recipe.class_path == f"peas.recipes.{recipe}"
    return model, model.encoder.init_args, model.recipe.init_args


def flat(settings: Any, where: str = "") -> dict[str, Any]:
    """Settings by their dotted keys."""
    found: dict[str, Any] = {}
    for key, value in vars(settings).items():
        inner = flat(value, f"{where}{key}.") if isinstance(value, Namespace) else None
        found |= {f"{where}{key}": value} if inner is None else inner
    return found


def at(settings: Any, key: str) -> Any:
    """The value at a dotted key."""
    for part in key.split("."):
        settings = settings[part]
    return settings


def overlay(name: str) -> Path:
    return CONFIGS / "overlays" / f"{name}.yaml"


@pytest.mark.parametrize(
    "name", sorted(path.stem for path in (CONFIGS / "finetune").glob("*.yaml"))
)
def test_a_run_of_a_file_is_its_row(parse: Parse, name: str) -> None:
    """What `paper.requires` names is in the config of a run, where it has every default."""
    config = parse("--config", finetune(name)).as_dict()
    if (required := config["paper"]["requires"]) is None:
        return
    assert differences(config, required.get("clips", 0)) == []
    for key in required.keys() - {"clips"}:
        at(config, key)
    size = config["model"]["init_args"]["encoder"]["init_args"]
    size["size"] = "mini"
    (told,) = differences(config, required.get("clips", 0))
    assert "model.init_args.encoder.init_args.size" in told


TASKS = ("Classification", "Pretraining")
DATA = "data: {class_path: peas.data.ESC50, init_args: {root: x}}\n"


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("key", ["encoder", "front_end", "recipe"])
def test_settings_of_a_part_without_a_class_are_of_the_tasks_own(
    parse: Parse, tmp_path: Path, task: str, key: str
) -> None:
    cls = getattr(tasks, task)
    setting, value = {
        "encoder": ("size", "mini"),
        "front_end": ("mean", -4.2),
        "recipe": ("lr", 3e-3),
    }[key]
    base, part = tmp_path / "base.yaml", tmp_path / "part.yaml"
    base.write_text(f"{DATA}model: {{class_path: peas.tasks.{task}, init_args: {{pretrained: x}}}}")
    given = {"model": {"init_args": {key: {"init_args": {setting: value}}}}}
    part.write_text(yaml.safe_dump(given))
    word = (f"--model.init_args.{key}.init_args.{setting}", value)
    for words in (("--config", part), word, (f"{word[0]}={value}",)):
        found = parse("--config", base, *words).model.init_args[key]
        assert found.class_path == class_path(cls.default_parts[key])
        assert found.init_args[setting] == value
    # Nobody has asked for the others.
    others = {"encoder", "front_end", "recipe"} - {key}
    assert not any(parse("--config", base, *word).model.init_args[other] for other in others)


def test_a_class_has_its_own_defaults_and_not_those_of_the_tasks_own(
    parse: Parse, tmp_path: Path
) -> None:
    base = tmp_path / "base.yaml"
    base.write_text(f"{DATA}model: {{class_path: peas.tasks.Classification}}")
    key = "--model.init_args.recipe"
    over = tmp_path / "over.yaml"
    over.write_text("model: {init_args: {recipe: {class_path: peas.recipes.AudioMAERecipe}}}")
    for words in (
        (key, "AudioMAERecipe"),
        (f"{key}.class_path", "peas.recipes.AudioMAERecipe"),
        ("--config", over),
    ):
        found = parse("--config", base, *words).model.init_args.recipe
        assert found.class_path == "peas.recipes.AudioMAERecipe"
        given = AudioMAERecipe().spec()["init_args"]
        assert {k: _plain(value) for k, value in vars(found.init_args).items()} == given


def test_every_file_is_read(parse: Parse) -> None:
    for path in CONFIGS.rglob("*.yaml"):
        if path.parent.name not in ("overlays", "sweeps"):
            model = parse("--config", path).model
            assert model.class_path in ("peas.tasks.Classification", "peas.tasks.Pretraining")
            assert model.init_args.encoder.class_path.startswith("peas.models."), path


def test_no_row_is_missing_and_none_is_too_many() -> None:
    names = NAMES + [f"speech_commands_v1_12_{row}" for row in KEYWORDS]
    names += [f"audioset_{subset}_conventional" for subset in AUDIOSET]
    names += [row.format(data) for data in MAE_SETUPS for row in (*MAE_ROWS, "ast_imagenet_{}")]
    names += ["ssast_esc50", "ssast_speech_commands"]
    names += [f"scratch_{data}" for data in SCRATCH] + ["linear_probe_esc50"]
    names += [f"{model}_{data}" for model, data in TODAY]
    assert sorted(path.stem for path in (CONFIGS / "finetune").glob("*")) == sorted(names)
    others = [path.name for path in CONFIGS.rglob("*.*") if path.suffix != ".yaml"]
    # Jobs of a cluster are scripts.
    assert sorted(others) == ["README.md", "slurm.sh", "torchrun.sh"]


@pytest.mark.parametrize("name", NAMES)
def test_a_row_holds_the_papers_numbers(parse: Parse, name: str) -> None:
    data = next(key for key in SETUPS if name.startswith(key))
    row = name.removeprefix(f"{data}_")
    setup, (title, table) = SETUPS[data], ROWS[row]
    config = parse("--config", finetune(name))

    assert config.paper.row == title
    assert config.paper.table == table
    assert config.paper.preset == "reference_code"

    assert config.trainer.max_epochs == setup.epochs
    assert config.data.class_path.split(".")[-1] == setup.data
    assert config.data.init_args.batch_size == setup.batch_size
    assert config.data.init_args.mixup == setup.mixup
    assert config.data.init_args.frames == setup.frames
    model, encoder, recipe = parts_of(config, "SSAST", "SSASTRecipe")
    assert (encoder.size, recipe.lr, model.loss) == ("base", setup.lr, setup.loss)
    assert model.pretrained == "SSAST-Base-Patch-400.pth"
    assert (encoder.patch, encoder.stride) == ((16, 16), (10, 10))
    assert (recipe.betas, recipe.weight_decay) == ((0.95, 0.999), 5e-7)
    assert (recipe.warmup_steps, recipe.decay_start) == (setup.warmup_steps, setup.decay_start)
    assert (recipe.decay_factor, recipe.head_lr_mult) == (0.85, 1.0)
    assert model.augmentation.noise_roll

    mask = config.masking
    assert mask.class_path.split(".")[-1] == STRATEGIES[row.partition("_")[0]]
    assert mask.init_args.max_time == setup.max_time
    assert mask.init_args.max_freq == setup.max_freq
    if row == "conventional":
        assert mask.init_args.stage == "before_noise"
        return
    blocks = int(row[-1])
    assert (mask.init_args.n_time, mask.init_args.n_freq) == (blocks, blocks)
    assert mask.init_args.final_phase == 0.2
    if "peas" in row:
        assert (mask.init_args.score, mask.init_args.ramp) == ("pred", "absolute")
        assert mask.init_args.rounding == "stochastic"
        assert mask.init_args.exclude_padding is mask.init_args.exclude_empty_bins is True
        assert mask.init_args.refresh_every == 1


@pytest.mark.parametrize("row", KEYWORDS)
def test_keyword_spotting_is_the_same_recipe_on_other_clips(parse: Parse, row: str) -> None:
    config = parse("--config", finetune(f"speech_commands_v1_12_{row}"))
    words = parse("--config", finetune(f"speech_commands_{row}"))
    assert config.model == words.model
    assert config.trainer == words.trainer
    assert config.masking == words.masking
    assert (config.paper.row, config.paper.accuracy) == (words.paper.row, None)
    ours, theirs = vars(config.data.init_args), vars(words.data.init_args)
    assert {key for key in ours if ours[key] != theirs[key]} == {"root", "task", "sampling"}
    assert (ours["task"], ours["sampling"]) == ("v1-12", "balanced")


@pytest.mark.parametrize("subset", AUDIOSET)
def test_audioset_has_the_recipe_of_ssast(parse: Parse, subset: str) -> None:
    config = parse("--config", finetune(f"audioset_{subset}_conventional"))
    lr, epochs, draws = AUDIOSET[subset]
    data = config.data.init_args
    model, encoder, recipe = parts_of(config, "SSAST", "SSASTRecipe")
    assert config.data.class_path.split(".")[-1] == "AudioSet"
    assert (data.subset, data.epoch_clips) == (f"as{subset}", draws)
    assert data.sampling == ("uniform" if draws is None else "balanced")
    assert (data.batch_size, data.mixup, data.frames) == (12, 0.5, 1024)
    assert (data.mean, data.std) == (-4.2677393, 4.5689974)
    assert (recipe.lr, model.loss, config.trainer.max_epochs) == (lr, "bce", epochs)
    assert (encoder.patch, encoder.stride, encoder.pooling) == ((16, 16), (10, 10), "mean")
    assert (recipe.betas, recipe.weight_decay) == ((0.95, 0.999), 5e-7)
    assert (recipe.warmup_steps, model.augmentation.noise_roll) == (0, False)
    mask = config.masking
    assert mask.class_path.split(".")[-1] == "SpecAugment"
    assert (mask.init_args.max_time, mask.init_args.max_freq) == (192, 48)


def test_the_rate_of_audioset_halves_every_five_epochs(parse: Parse) -> None:
    config = parse("--config", finetune("audioset_20k_conventional"))
    _, _, recipe = parts_of(config, "SSAST", "SSASTRecipe")
    settings = (recipe.decay_start, recipe.decay_factor, recipe.decay_every)
    assert settings == (10, 0.5, 5)


@pytest.mark.parametrize("data", MAE_SETUPS)
@pytest.mark.parametrize("row", MAE_ROWS)
def test_audiomaes_recipe_and_both_readings_of_supmam_clap(
    parse: Parse, data: str, row: str
) -> None:
    setup, name = MAE_SETUPS[data], row.format(data)
    config = parse("--config", finetune(name))
    system, pretrained = MAE_SYSTEMS[row.partition("_{}")[0]]
    ours = "AudioMAE" not in system
    literal = name.endswith("specaugment")
    assert config.paper.table == "SupMAM-CLAP 1"
    assert config.paper.row == system
    assert config.paper.preset == ("paper_literal" if literal else "reference_code")

    assert config.trainer.max_epochs == setup.epochs
    clips = config.data.init_args
    assert config.data.class_path.split(".")[-1] == setup.data
    assert (clips.batch_size, clips.mixup, clips.frames) == (
        setup.batch_size,
        setup.mixup,
        setup.frames,
    )
    model, encoder, recipe = parts_of(config, "AudioMAE", "AudioMAERecipe")
    assert (encoder.size, encoder.pooling) == ("base", "mean")
    assert (encoder.patch, encoder.stride) == ((16, 16), (16, 16))
    assert model.pretrained == pretrained
    assert (recipe.lr, recipe.base_batch_size, model.loss) == (setup.lr, 256, setup.loss)
    assert global_lr(recipe.lr, recipe.base_batch_size, clips.batch_size) == pytest.approx(
        setup.rate
    )
    assert (recipe.layer_decay, encoder.drop_path) == (0.75, 0.1)
    assert (recipe.betas, recipe.weight_decay) == ((0.9, 0.999), setup.weight_decay)
    assert model.label_smoothing == setup.label_smoothing
    assert (recipe.warmup_epochs, recipe.min_lr) == (setup.warmup, 1e-6)
    augmentation = model.augmentation
    assert (augmentation.noise_roll, augmentation.roll_gain) == (False, setup.roll_gain)
    assert model.freeze is None

    others, mask = config.trainer.callbacks, config.masking
    assert mask.class_path.split(".")[-1] == "SpecAugment"
    widths = (mask.init_args.max_time, mask.init_args.max_freq)
    assert widths == (setup.literal if literal else setup.masks)
    dropping = [one for one in others if one.class_path.endswith("PatchDropout")]
    # The SupMAM-CLAP paper's own 0.2 and 0.2 hold on ESC-50 too, where AudioMAE's script has none.
    assert len(dropping) == (0 if literal or (data == "esc50" and not ours) else 1)
    if dropping:
        assert (dropping[0].init_args.time, dropping[0].init_args.freq) == (0.2, 0.2)
    if literal:
        assert widths == (int(0.2 * clips.frames), int(0.2 * 128))


@pytest.mark.parametrize(("name", "data"), TODAY)
def test_eats_scripts_and_the_reproduction_of_beats(parse: Parse, name: str, data: str) -> None:
    config = parse("--config", finetune(f"{name}_{data}"))
    kind = {"eat": "EAT", "beats": "BEATs"}[name]
    model, encoder, recipe = parts_of(config, kind, "AudioMAERecipe")
    clips, mask, augmentation = config.data.init_args, config.masking.init_args, model.augmentation
    assert TODAY[name, data] == (
        *(config.trainer.max_epochs, recipe.warmup_epochs, recipe.lr, recipe.min_lr),
        *(clips.batch_size, clips.mixup, (mask.max_time, mask.max_freq)),
        *(model.loss, model.label_smoothing, augmentation.noise_roll, augmentation.roll_gain),
    )
    assert (encoder.size, encoder.patch, recipe.base_batch_size) == ("base", (16, 16), None)
    rest = (recipe.layer_decay, recipe.weight_decay, recipe.betas, encoder.drop_path)
    if name == "eat":
        assert rest == (0.65, 0.05, (0.9, 0.95), 0.1)
        assert (encoder.pooling, augmentation.fill, model.front_end) == ("cls", "zero", None)
    else:
        assert rest == (1.0, 0.01, (0.9, 0.98), 0.0)
        front_end = model.front_end
        assert front_end.class_path == "peas.audio.BEATsLogMel"
        statistics = (11.72215, 10.60431) if data == "esc50" else (15.41663, 6.55582)
        assert (front_end.init_args.mean, front_end.init_args.std) == statistics
        assert encoder.gradient_decay == (0.3 if data == "audioset_20k" else 0.2)
        assert (encoder.patch_width, encoder.buckets, encoder.max_distance) == (512, 320, 800)


@pytest.mark.parametrize("data", MAE_SETUPS)
@pytest.mark.parametrize("row", [*MAE_ROWS, "ast_imagenet_{}"])
def test_data_of_a_row_is_the_data_sets_own(parse: Parse, data: str, row: str) -> None:
    config = parse("--config", finetune(row.format(data)))
    clips = config.data.init_args
    mean, std = MAE_SETUPS[data].statistics
    if data.startswith("speech"):
        from peas.data.speech_commands.module import STATISTICS

        task = "v1-12" if data.endswith("12") else "v2-35"
        assert (clips.task, STATISTICS[task]) == (task, (mean, std))
        sampling = {"v2-35": None, "v1-12": "balanced" if "ast" in row else "repeated"}[task]
        assert clips.sampling == sampling
    else:
        assert (clips.mean, clips.std) == (mean, std)
    if data == "audioset_2m":
        drawn = (clips.subset, clips.sampling, clips.epoch_clips, clips.replacement)
        assert drawn == ("as2m", "balanced", None if "ast" in row else 200_000, True)
    elif data == "audioset_20k":
        assert (clips.subset, clips.sampling) == ("as20k", "uniform")


@pytest.mark.parametrize("data", MAE_SETUPS)
def test_ast_is_asts_recipe_from_imagenet(parse: Parse, data: str) -> None:
    config = parse("--config", finetune(f"ast_imagenet_{data}"))
    epochs, lr, batch, mixup, warmup, start, factor, every, noise = {
        "audioset_2m": (5, 1e-5, 12, 0.5, 1000, 2, 0.5, 1, False),
        "audioset_20k": (25, 5e-5, 12, 0.5, 1000, 10, 0.5, 5, False),
        "esc50": (25, 1e-4, 48, 0.0, 0, 5, 0.85, 1, False),
        "speech_commands": (30, 2.5e-4, 128, 0.6, 0, 5, 0.85, 1, True),
        "speech_commands_v1_12": (30, 2.5e-4, 128, 0.6, 0, 5, 0.85, 1, True),
    }[data]
    assert config.paper.row == "AST"
    clips = config.data.init_args
    model, encoder, recipe = parts_of(config, "SSAST", "SSASTRecipe")
    assert model.pretrained == "timm:deit_base_distilled_patch16_384.fb_in1k"
    assert (encoder.pooling, encoder.stride) == ("cls", (10, 10))
    assert (config.trainer.max_epochs, recipe.lr, model.loss) == (
        epochs,
        lr,
        MAE_SETUPS[data].loss,
    )
    assert (clips.batch_size, clips.mixup) == (batch, mixup)
    assert (recipe.warmup_steps, recipe.decay_start) == (warmup, start)
    assert (recipe.decay_factor, recipe.decay_every) == (factor, every)
    assert (model.augmentation.noise_roll, recipe.base_batch_size) == (noise, None)
    mask = config.masking.init_args
    assert (mask.max_time, mask.max_freq) == MAE_SETUPS[data].masks


@pytest.mark.parametrize("data", ["esc50", "speech_commands"])
def test_ssasts_own_rows_are_peas_conventional_ones_with_its_batch_and_epochs(
    parse: Parse, data: str
) -> None:
    ours = parse("--config", finetune(f"ssast_{data}"))
    peas = parse("--config", finetune(f"{data}_conventional"))
    assert (ours.paper.table, ours.paper.row) == ("SupMAM-CLAP 1", "SS-AST")
    epochs, batch = {"esc50": (50, 48), "speech_commands": (30, 128)}[data]
    assert (ours.trainer.max_epochs, ours.data.init_args.batch_size) == (epochs, batch)
    peas.trainer.max_epochs, peas.data.init_args.batch_size = epochs, batch
    assert (ours.model, ours.trainer, ours.data) == (peas.model, peas.trainer, peas.data)


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("audioset_20k_conventional", 5),
        ("ast_imagenet_audioset_20k", 5),
        ("ast_imagenet_audioset_2m", 0),
    ],
)
def test_ast_and_ssast_average_the_ends_of_epochs_on_audioset(
    parse: Parse, name: str, first: int
) -> None:
    config = parse("--config", finetune(name))
    kinds = {one.class_path.split(".")[-1]: one.init_args for one in config.trainer.callbacks}
    # The official `wa_start` counts from 1; `wa_end` is the last epoch.
    assert kinds["WeightAverage"].equal_from == first


@pytest.mark.parametrize("data", SCRATCH)
def test_from_nothing_is_the_same_recipe_without_weights(parse: Parse, data: str) -> None:
    config = parse("--config", finetune(f"scratch_{data}"))
    row = parse("--config", finetune(f"audiomae_{data}"))
    assert (config.data, config.trainer, config.masking) == (row.data, row.trainer, row.masking)
    ours, theirs = flat(config.model.init_args), flat(row.model.init_args)
    assert ours.keys() == theirs.keys()
    decay = "recipe.init_args.layer_decay"
    assert {key for key in ours if ours[key] != theirs[key]} == {"pretrained", decay}
    assert (ours["pretrained"], ours[decay]) == (None, 1.0)


def test_linear_probe_trains_the_classifier_on_clips_as_they_are(parse: Parse) -> None:
    config = parse("--config", finetune("linear_probe_esc50"))
    model, encoder, recipe = parts_of(config, "AudioMAE", "AudioMAERecipe")
    assert (model.freeze, encoder.drop_path, recipe.weight_decay) == ("encoder", 0.0, 0.0)
    augmentation = model.augmentation
    assert (augmentation.noise_roll, augmentation.roll_gain) == (False, "none")
    assert config.data.init_args.mixup == 0.0
    assert not config.trainer.callbacks
    assert config.masking is None
    assert (recipe.base_batch_size, recipe.layer_decay) == (None, 1.0)


@pytest.mark.parametrize("data", SETUPS)
def test_numbers_of_classes(data: str) -> None:
    from peas.data.labels import read_labels

    names = {"esc50": "esc50", "speech_commands": "speech_commands_v2"}
    assert len(read_labels(names[data])) == CLASSES[data]


@pytest.mark.parametrize("name", PRETRAIN)
def test_pretraining_is_read(parse: Parse, name: str) -> None:
    config = parse("--config", CONFIGS / "pretrain" / f"{name}.yaml")
    assert config.model.class_path.startswith("peas.tasks.")


@pytest.mark.parametrize("name", SSAST_PRETRAINING)
def test_pretraining_has_the_recipe_of_ssast(parse: Parse, name: str) -> None:
    size, patch, clips, lr, every = SSAST_PRETRAINING[name]
    config = parse("--config", CONFIGS / "pretrain" / f"{name}.yaml")
    clip_sets = config.data.init_args
    assert config.model.class_path == "peas.tasks.Pretraining"
    model, encoder, recipe = parts_of(config, "SSAST", "SSASTPretrainingRecipe")
    assert (encoder.size, encoder.patch, recipe.lr) == (size, patch, lr)
    for masking in (model.masking, model.eval_masking):
        assert masking.class_path == "peas.masking.ClusteredPatches"
        assert (masking.init_args.num_masked, masking.init_args.sides) == (400, (3, 4, 5))
        assert masking.init_args.sampler == "batched"
    nce, mse = model.objectives["nce"], model.objectives["mse"]
    assert (nce.class_path, nce.init_args.weight) == ("peas.objectives.PatchContrast", 1.0)
    assert (mse.class_path, mse.init_args.weight) == ("peas.objectives.Reconstruction", 10.0)
    assert (nce.init_args.axis, mse.init_args.norm_pix) == ("code", False)
    assert (len(model.objectives), model.passes, model.pretrained) == (2, "separate", None)
    assert (recipe.betas, recipe.weight_decay) == ((0.95, 0.999), 5e-7)
    assert (recipe.warmup_steps, recipe.plateau_factor, recipe.plateau_patience) == (1000, 0.5, 2)
    assert recipe.monitor == "nce_accuracy"
    assert recipe.plateau_every == config.trainer.val_check_interval == every
    assert (config.trainer.max_epochs, config.trainer.check_val_every_n_epoch) == (10, None)
    assert (clip_sets.batch_size, clip_sets.mixup) == (clips, 0.0)
    sets = [one.class_path.split(".")[-1] for one in clip_sets.sets]
    assert sets == ["AudioSet", "LibriSpeech"]


def test_rows_of_ssasts_pretraining_are_overrides(parse: Parse) -> None:
    base = ("--config", CONFIGS / "pretrain" / "ssast.yaml")
    for key, value in (
        ("masking.init_args.num_masked", 250),
        ("masking.init_args.num_masked", 100),
        ("objectives.mse", None),
        ("objectives.nce", None),
        ("encoder.init_args.patch", [128, 2]),
        ("passes", "shared"),
    ):
        word = f"--model.init_args.{key}={yaml.safe_dump(value, default_flow_style=True)}"
        model = parse(*base, word.removesuffix("...\n").strip()).model.init_args
        assert _plain(at(model, key)) == value
        # What stands beside it stays.
        assert model.objectives.keys() == {"nce", "mse"}


def pretrain(name: str) -> Path:
    return CONFIGS / "pretrain" / f"{name}.yaml"


def test_no_pretraining_is_missing_and_none_is_too_many() -> None:
    names = [*PRETRAINING, "ssast", "ssast_frame", "ssast_tiny"]
    assert sorted(path.stem for path in (CONFIGS / "pretrain").glob("*")) == sorted(names)


@pytest.mark.parametrize("name", PRETRAINING)
def test_masked_audio_modeling_has_the_papers_numbers(parse: Parse, name: str) -> None:
    row = PRETRAINING[name]
    config = parse("--config", pretrain(name))
    assert config.paper.table == "SupMAM-CLAP 1"
    assert config.paper.row == f"{row.row}, pretraining"
    assert config.paper.preset == "reference_code"
    assert config.model.class_path == "peas.tasks.Pretraining"
    model, encoder, recipe = parts_of(config, "AudioMAE", "AudioMAEPretrainingRecipe")
    clips = config.data.init_args
    parts = {key: part.init_args for key, part in model.objectives.items()}
    assert {key: part.weight for key, part in parts.items()} == row.weights
    assert (encoder.size, encoder.patch, model.pretrained) == ("base", (16, 16), None)
    assert model.masking.class_path == "peas.masking.RandomPatches"
    assert model.masking.init_args.ratio == row.mask_ratio
    sizes = (encoder.decoder_width, encoder.decoder_depth, encoder.decoder_heads)
    assert (encoder.decoder, *sizes) == row.decoder
    assert (config.trainer.max_epochs, recipe.warmup_epochs) == (row.epochs, row.warmup)
    assert (clips.batch_size, clips.mixup) == (row.batch_size, 0.0)
    assert global_lr(recipe.lr, recipe.base_batch_size, row.batch_size) == pytest.approx(row.rate)
    assert recipe.min_lr == 0.0
    # The papers' own runs have AudioMAE's optimiser, and its augmentation is AudioMAE's alone.
    if name not in ("mae_ast", "maskspec"):
        assert (recipe.betas, recipe.weight_decay) == ((0.9, 0.95), 1e-4)
    assert model.roll_gain == ("official" if name == "audiomae" else "none")
    assert encoder.positions == ("geometric" if row.decoder[0] == "global" else None)
    if part := parts.get("distillation"):
        assert part.teacher.class_path.split(".")[-1] == "LaionClapTeacher"
        assert part.teacher.init_args.checkpoint == "630k-audioset-best.pt"
        assert (part.norm, part.loss) == ("l2", "mse")
        assert (part.visible_path, part.padding) == ("direct", "exclude")
    if part := parts.get("classification"):
        assert (part.loss, part.temperature, part.hidden) == ("soft", 10.0, 3072)
    if "AudioSet" in config.data.class_path:
        assert (clips.subset, clips.sampling, clips.frames) == ("as2m", "uniform", 1024)


@pytest.mark.parametrize("name", ["audiomae", "supmam", "mae_ast", "maskspec", "msm_mae"])
def test_a_recipe_trains_a_small_model_on_small_sounds(
    parse: Parse, name: str, sounds: Path, tmp_path: Path
) -> None:
    config = parse("--config", pretrain(name))
    settings = config.model.init_args.as_dict()
    settings["encoder"]["init_args"] |= {"size": "mini", "decoder_width": 96}
    task = tasks.Pretraining(**parts(settings))
    trainer = quiet_trainer(tmp_path, max_epochs=config.trainer.max_epochs, max_steps=2)
    trainer.fit(task, datamodule=data(sounds))
    trained = {key for key in trainer.callback_metrics if key.startswith("train/")}
    assert trained >= {f"train/{key}" for key in PRETRAINING[name].weights}
    assert task.model.decoder is not None
    assert len(task.model.decoder.blocks) == PRETRAINING[name].decoder[2]


def test_every_row_of_the_papers_ablations_is_an_override(parse: Parse) -> None:
    """Each command line of the tables in configs/README.md is one that `peas fit` reads."""
    text = (CONFIGS / "README.md").read_text(encoding="utf-8")
    lines = re.findall(r"`(pretrain/[a-z_]+\.yaml(?: --[^`]*)?)`", text)
    found: dict[str, set[Any]] = {}
    for line in lines:
        alternatives = re.search(r"\{([\d.,]+)\}", line)
        for value in alternatives[1].split(",") if alternatives else [""]:
            filled = line if alternatives is None else line.replace(alternatives[0], value)
            file, *flags = filled.split()
            model = parse("--config", CONFIGS / file, *flags).model.init_args
            for key, wanted in zip(flags[::2], flags[1::2], strict=True):
                assert _plain(at(model, key.removeprefix("--model.init_args."))) == (
                    yaml.safe_load(wanted)
                )
            if "objectives" in model:
                weights = {k: part.init_args.weight for k, part in model.objectives.items() if part}
                named = (weights.get(k, 0.0) for k in ("reconstruction", "classification"))
                ratio = getattr(model.masking.init_args, "ratio", None)
                figures = (ratio, *named)
                found.setdefault(file.removeprefix("pretrain/"), set()).add(figures)
    assert {ratio for ratio, *_ in found["mam_clap.yaml"]} == {0.1, 0.2, 0.3, 0.4}
    supmam = found["supmam.yaml"]
    assert {r for r, rec, cls in supmam if (rec, cls) == (1.0, 0.01)} == {
        *(0.2, 0.3, 0.4, 0.5, 0.6),
        0.8,
    }
    assert {cls for r, rec, cls in supmam if (r, rec) == (0.4, 1.0)} == {
        *(0.05, 0.02, 0.01, 0.005),
        0.0,
    }
    assert {(r, cls) for r, rec, cls in supmam if rec == 0} == {(0.8, 1.0), (0.4, 1.0)}


PRESETS = {"mam_clap": ["mam_clap"], "supmam": ["supmam"], "supmam_clap": ["mam_clap", "supmam"]}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_of_supmam(parse: Parse, name: str) -> None:
    row, likely, literal = (
        parse(
            *("--config", pretrain(name)),
            *(word for over in PRESETS[name] for word in ("--config", overlay(f"{over}_{preset}"))),
        ).model.init_args
        if preset
        else parse("--config", pretrain(name)).model.init_args
        for preset in ("", "reference_code", "paper_literal")
    )
    assert _plain(row) == _plain(likely)
    ours, theirs = flat(likely), flat(literal)
    different = {key for key in ours if _plain(ours[key]) != _plain(theirs[key])}
    shift, rule = "encoder.init_args.decoder_first_shift", "recipe.init_args.base_batch_size"
    assert different == {shift, rule, "objectives"}
    keys = {
        f"{objective}.{key}"
        for objective, part in likely.objectives.items()
        for key, value in vars(part.init_args).items()
        if _plain(value) != _plain(literal.objectives[objective].init_args[key])
    }
    of_clap = {"distillation.norm", "distillation.loss", "distillation.padding"}
    of_branch = {"classification.loss"}
    wanted = {"mam_clap": of_clap, "supmam": of_branch, "supmam_clap": of_clap | of_branch}[name]
    assert keys - {"reconstruction.norm_pix"} == wanted
    recipe = literal.recipe.init_args
    assert global_lr(recipe.lr, recipe.base_batch_size, 128) == 2e-4


def test_targets_in_the_place_of_the_teacher(parse: Parse) -> None:
    key = "--model.init_args.objectives.distillation.init_args"
    model = parse(
        *("--config", pretrain("mam_clap"), f"{key}.targets", "maps", f"{key}.teacher", "null"),
    ).model.init_args
    part = model.objectives["distillation"].init_args
    assert (part.targets, part.teacher, part.norm) == ("maps", None, "l2")


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_lies_over_a_row(parse: Parse, name: str) -> None:
    base = finetune("esc50_peas_1x1")
    if name.startswith(("supmam", "mam_clap", "sync")):
        base = pretrain("supmam_clap")
    config = parse("--config", base, "--config", overlay(name))

    # What the overlay names has its value; the rest is the row's.
    def check(given: dict[str, Any], got: Any, where: str) -> None:
        for key, value in given.items():
            if isinstance(value, dict):
                check(value, got[key], f"{where}.{key}")
            elif isinstance(value, list) and value and isinstance(value[0], dict):
                for one, other in zip(value, got[key], strict=True):
                    check(one, other, f"{where}.{key}")
            elif key == "class_path":
                assert got[key].split(".")[-1] == value.split(".")[-1], where
            else:
                assert _plain(got[key]) == value, f"{where}.{key}"

    row = parse("--config", base)
    given = yaml.safe_load(overlay(name).read_text())
    if appended := given.get("trainer", {}).pop("callbacks+", None):
        # Behind the row's own.
        own = row.trainer.callbacks
        assert len(config.trainer.callbacks) == len(own) + len(appended)
        config.trainer.callbacks, behind = own, config.trainer.callbacks[len(own) :]
        for one, other in zip(appended, behind, strict=True):
            check(one, other, name)
    check(given, config, name)
    assert config.data.class_path == row.data.class_path
    ours, theirs = config.model.init_args.recipe, row.model.init_args.recipe
    assert (ours.class_path, ours.init_args.lr) == (theirs.class_path, theirs.init_args.lr)
    encoder = config.model.init_args.encoder
    assert encoder.class_path == row.model.init_args.encoder.class_path
    assert config.data.init_args.batch_size == row.data.init_args.batch_size


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def test_presets_differ_where_they_should(parse: Parse) -> None:
    base = finetune("esc50_peas_1x1")
    likely, literal = (
        parse("--config", base, "--config", overlay(name)).masking.init_args
        for name in ("peas_reference_code", "peas_paper_literal")
    )
    different = {key for key in vars(likely) if likely[key] != literal[key]}
    assert different == {
        *("rounding", "exclude_padding", "exclude_empty_bins", "select", "overlap"),
    }
    assert (literal.select, literal.overlap) == ("topk", "allow")
    # The row is the likely reading as it stands.
    row = parse("--config", base).masking.init_args
    assert row == likely


def test_flags_that_scripts_rely_on(parse: Parse) -> None:
    config = parse(
        *("--config", finetune("esc50_peas_2x2")),
        *("--data.init_args.root=elsewhere", "--data.init_args.fold=3"),
        *("--data.init_args.batch_size=4", "--model.init_args.encoder.init_args.size=tiny"),
        *("--model.init_args.pretrained=null", "--trainer.default_root_dir=here"),
        *("--masking.init_args.n_time=3", "--trainer.limit_train_batches=1"),
    )
    assert (config.data.init_args.root, config.data.init_args.fold) == ("elsewhere", 3)
    encoder = config.model.init_args.encoder
    assert encoder.class_path == "peas.models.SSAST"
    assert (config.data.init_args.batch_size, encoder.init_args.size) == (4, "tiny")
    assert config.model.init_args.pretrained is None
    assert config.trainer.default_root_dir == "here"
    assert config.masking.init_args.n_time == 3
    assert config.trainer.limit_train_batches == 1
