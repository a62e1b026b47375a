"""The experiments of configs/examples: they parse, and arms differ in what they compare alone."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import Namespace

EXAMPLES = Path(__file__).parents[2] / "configs" / "examples"
SETS = {"esc10": "ESC50", "fsdd": "AudioFolder"}
ARMS = ("random", "peas", "energy")
SYSTEMS = {
    # Mask ratio, decoder blocks, weights of reconstruction, distillation and classification.
    "audiomae": (0.8, 2, 1.0, 0.0, 0.0),
    "mam_teacher": (0.2, 1, 0.0, 1.0, 0.0),
    "supmam": (0.4, 2, 1.0, 0.0, 0.01),
    "supmam_teacher": (0.2, 1, 0.0, 1.0, 0.0001),
}
PRETRAINED = ["ssast", *SYSTEMS]

Parse = Callable[..., Namespace]


class _Built(Exception):
    """Carries the parser out of a constructor."""


@pytest.fixture(scope="module")
def parse() -> Parse:
    """The real parser of `peas fit`; nothing is instantiated."""
    from peas.cli.main import SETTINGS, PeasCLI

    class Reader(PeasCLI):
        """Stops where LightningCLI would read its arguments and go on to run them."""

        def parse_arguments(self, parser: Any, args: Any) -> None:
            raise _Built(parser)

    with pytest.raises(_Built) as caught:
        Reader(**SETTINGS)
    built = caught.value.args[0]

    @cache
    def parsed(name: str, *argv: str) -> Namespace:
        file = str(EXAMPLES / f"{name}.yaml")
        config: Namespace = built.parse_args(["fit", "--config", file, *argv]).fit
        return config

    return parsed


@pytest.mark.parametrize("name", sorted(path.stem for path in EXAMPLES.glob("*.yaml")))
def test_every_example_parses(parse: Parse, name: str) -> None:
    config = parse(name)
    given = yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text())
    assert config.model.class_path == given["model"]["class_path"]
    for key, value in given["model"]["init_args"].items():
        assert _covers(config.model.init_args[key], value), key


def _covers(got: Any, value: Any) -> bool:
    """Whether a parsed setting is what a file gives; beside it may stand defaults."""
    if isinstance(value, dict):
        return all(_covers(got[key], item) for key, item in value.items())
    return bool((list(got) if isinstance(got, tuple) else got) == value)


@pytest.mark.parametrize("data", SETS)
def test_arms_differ_in_the_masking_strategy_alone(data: str) -> None:
    read = {arm: (EXAMPLES / f"{data}_mini_{arm}.yaml").read_text() for arm in ARMS}
    configs = {arm: yaml.safe_load(text) for arm, text in read.items()}
    masks = {arm: config.pop("masking") for arm, config in configs.items()}
    assert configs["random"] == configs["peas"] == configs["energy"]
    random, peas, energy = (masks[arm] for arm in ARMS)
    assert random["class_path"] == "peas.callbacks.RandomMasking"
    # Every width and number of the baseline is that of the others.
    assert random["init_args"].items() <= peas["init_args"].items()
    assert peas["class_path"] == energy["class_path"] == "peas.callbacks.PEAS"
    assert {**peas["init_args"], "score": "energy"} == energy["init_args"]
    assert peas["init_args"]["score"] == "pred"
    assert peas["init_args"]["ramp"] == "relative"
    assert peas["init_args"]["exclude_padding"] is True
    assert peas["init_args"]["exclude_empty_bins"] is True


@pytest.mark.parametrize("data", SETS)
def test_arms_start_from_the_ssast_of_these_examples(parse: Parse, data: str) -> None:
    config, source = parse(f"{data}_mini_peas"), parse("pretrain_urbansound8k_ssast")
    ours, theirs = config.model.init_args, source.model.init_args
    assert config.data.class_path.split(".")[-1] == SETS[data]
    assert ours.encoder.class_path == theirs.encoder.class_path == "peas.models.SSAST"
    tuned, pretrained = ours.encoder.init_args, theirs.encoder.init_args
    assert (tuned.size, tuned.patch) == (pretrained.size, pretrained.patch) == ("mini", (16, 16))
    assert tuned.stride == pretrained.patch
    assert ours.pretrained == "runs/pretrain/ssast/checkpoints/last.ckpt"
    # PEAS needs a trained pixel head.
    assert theirs.objectives.keys() == {"nce", "mse"}


@pytest.mark.parametrize("name", PRETRAINED)
def test_pretraining_is_on_the_same_clips(parse: Parse, name: str) -> None:
    config = parse(f"pretrain_urbansound8k_{name}")
    assert config.data == parse("pretrain_urbansound8k_ssast").data
    data = config.data.init_args
    assert (data.csv, str(data.fold), data.split, data.frames) == (
        "clips.csv",
        "10",
        "official",
        400,
    )
    encoder = config.model.init_args.encoder.init_args
    assert (encoder.size, encoder.patch) == ("mini", (16, 16))


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_systems_are_the_papers_scaled_down(parse: Parse, name: str) -> None:
    model = parse(f"pretrain_urbansound8k_{name}").model.init_args
    mask, depth, *weights = SYSTEMS[name]
    assert model.masking.init_args.ratio == mask
    assert model.encoder.init_args.decoder_depth == depth
    found = {key: part.init_args.weight for key, part in model.objectives.items()}
    names = ("reconstruction", "distillation", "classification")
    assert found == {key: value for key, value in zip(names, weights, strict=True) if value}
    if "teacher" in name:
        assert model.objectives["distillation"].init_args.targets == "runs/targets/efficientat"


def test_half_of_the_patches_are_masked(parse: Parse) -> None:
    model = parse("pretrain_urbansound8k_ssast").model.init_args
    patches = (128 // 16) * (400 // 16)
    assert (model.masking.init_args.num_masked, model.eval_masking, patches) == (100, None, 200)


def test_rows_that_are_overrides(parse: Parse) -> None:
    key = "--model.init_args.objectives.reconstruction"
    model = parse("pretrain_urbansound8k_supmam", f"{key}=null").model.init_args
    assert model.objectives["reconstruction"] is None
    assert model.objectives["classification"].init_args.weight == 0.01
    key = "--model.init_args.masking.init_args.ratio"
    model = parse("pretrain_urbansound8k_audiomae", f"{key}=0.4").model.init_args
    assert model.masking.init_args.ratio == 0.4
