"""The pretraining task of AudioMAE, MAM-CLAP, SupMAM and SupMAM-CLAP."""

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from made import classification, masked_task
from torch import nn
from toys import FACTS, StandIn, clips, data, quiet_trainer

from peas.callbacks import PEAS, SpecAugment
from peas.errors import CheckpointError, ConfigError, DataError, NoReconstruction
from peas.objectives import Reconstruction, feature_loss, label_loss, masked_patch_error
from peas.tasks import Pretraining
from peas.teachers.base import Teacher
from peas.teachers.grid import Extent

DECODER: dict[str, Any] = {"decoder_width": 32, "decoder_heads": 2, "decoder_depth": 2}
SYSTEMS: dict[str, dict[str, Any]] = {
    "audiomae": {"mask_ratio": 0.8},
    "mam_clap": {
        "mask_ratio": 0.2,
        "decoder_depth": 1,
        "reconstruction": 0.0,
        "distillation": 1.0,
    },
    "supmam": {"mask_ratio": 0.4, "classification": 0.01},
    "supmam_clap": {
        "mask_ratio": 0.2,
        "decoder_depth": 1,
        "reconstruction": 0.0,
        "distillation": 1.0,
        "classification": 1e-4,
    },
    "classification": {"mask_ratio": 0.4, "reconstruction": 0.0, "classification": 1.0},
    "mae_ast": {"contrastive": 1.0, "reconstruction": 10.0},
}
PAPERS = ("audiomae", "mam_clap", "supmam", "supmam_clap", "mae_ast")
EXTENT = Extent(0.05, 0.1, (0.0, 1000.0, 4000.0))


class Ear(nn.Module):
    """A layer with a BatchNorm and dropout: in training it would change and be changed."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 12)
        self.norm = nn.BatchNorm1d(12)
        self.drop = nn.Dropout(0.5)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.drop(self.norm(self.layer(rows)))


class ToyTeacher(Teacher):
    """Six features of mean size and change in windows of 0.1 s at 8 kHz, in two rows."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(rate=8_000, width=6, extent=EXTENT, name=f"Toy {seed}")
        self.seed = seed
        self.moved: list[Any] = []

    def build(self) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            return Ear()

    def settings(self) -> dict[str, object]:
        return {"toy": "ear"}

    def to(self, device: Any) -> "ToyTeacher":
        self.moved.append(device)
        return super().to(device)

    def features(self, waveform: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        windows = waveform[:, : waveform.shape[1] // 800 * 800].unflatten(1, (-1, 800))
        told = torch.stack([windows.abs().mean(2), windows.diff(dim=2).abs().mean(2)], dim=2)
        rows = self.network(told.flatten(0, 1)).view(len(told), -1, 6, 2)
        return rows.permute(0, 2, 3, 1)


def small(**settings: Any) -> Pretraining:
    torch.manual_seed(0)
    given = {"size": "toy", **DECODER, "lr": 3e-3, "base_batch_size": None, "warmup_epochs": 0}
    return masked_task(**{**given, **settings})


def distils(name: str) -> bool:
    return SYSTEMS[name].get("distillation", 0) > 0


def system(name: str, **settings: Any) -> Pretraining:
    if distils(name) and "targets" not in settings:
        settings = {"teacher": ToyTeacher(), **settings}
    return small(**{**SYSTEMS[name], **settings})


def train(
    task: Pretraining,
    sounds: Path,
    folder: Path,
    *callbacks: Callback,
    start: Path | None = None,
    epochs: int = 2,
    clip_set: Any = None,
    **settings: Any,
) -> Trainer:
    trainer = quiet_trainer(
        folder,
        max_epochs=epochs,
        callbacks=list(callbacks),
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
        logger=CSVLogger(folder, name="logs"),
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        **settings,
    )
    module = data(sounds) if clip_set is None else clip_set
    trainer.fit(task, datamodule=module, ckpt_path=start, weights_only=True)
    return trainer


def logged(folder: Path, key: str) -> list[float]:
    rows: list[float] = []
    for path in sorted(folder.rglob("metrics.csv")):
        with path.open() as file:
            rows += [float(row[key]) for row in csv.DictReader(file) if row.get(key)]
    return rows


def steps(folder: Path, key: str) -> list[float]:
    """What `logged` gives, without the rows of an epoch's end."""
    rows: list[float] = []
    for path in sorted(folder.rglob("metrics.csv")):
        with path.open() as file:
            read = csv.DictReader(file)
            rows += [float(row[key]) for row in read if row.get(key) and not row["train/loss"]]
    return rows


def built(**settings: Any) -> Pretraining:
    """A task away from a trainer, with a stand-in for what it asks of one."""
    task = small(**{**FACTS, "frames": 64, **settings})
    task._trainer = StandIn()  # type: ignore[assignment]
    task.build(initialise=False)
    task.log = lambda *_, **__: None  # type: ignore[method-assign, assignment]
    return task


def heard(task: Pretraining, count: int = 6, **changes: Any) -> Any:
    batch = clips(count, seconds=0.64)
    batch["labelled"] = torch.ones(count, dtype=torch.bool)
    return {**task.on_after_batch_transfer(batch, 0), **changes}


# --- systems --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAPERS)
def test_every_system_learns_more_than_its_baseline(
    name: str, sounds: Path, tmp_path: Path
) -> None:
    task = system(name, size="mini", grad_norm_every=1)
    trainer = train(task, sounds, tmp_path, epochs=4)
    weights = {key: part.weight for key, part in task.parts.items()}
    metrics = {key: float(value) for key, value in trainer.callback_metrics.items()}
    for objective in (*weights, "loss"):
        of_epochs = logged(tmp_path, f"train/{objective}")
        assert len(of_epochs) == 4
        assert np.isfinite(of_epochs).all()
        assert metrics[f"val/{objective}"] > 0
    assert logged(tmp_path, "train/loss")[-1] < logged(tmp_path, "train/loss")[0]
    if "reconstruction" in weights:
        assert 0 < metrics["val/valid_mse"] < 1.2 * metrics["val/baseline_mse"]
    if "distillation" in weights:
        assert metrics["val/feature_mse"] < 3 * metrics["val/baseline_feature_mse"]
    if "classification" in weights:
        assert metrics["val/baseline_classification"] == pytest.approx(np.log(4), abs=1e-6)
    norms = {objective: logged(tmp_path, f"grad/{objective}") for objective in weights}
    if len(weights) == 1:
        assert not any(norms.values())
    else:
        assert all(len(rows) == 16 and min(rows) > 0 for rows in norms.values())


@pytest.mark.parametrize("name", list(SYSTEMS))
def test_every_weight_is_trained(name: str, sounds: Path, tmp_path: Path) -> None:
    """A weight without a gradient would stop DistributedDataParallel."""
    seen: dict[str, bool] = {}

    class Watch(Callback):
        def on_after_backward(self, trainer: Trainer, pl_module: Any) -> None:
            seen.update({n: p.grad is not None for n, p in pl_module.named_parameters()})

    train(system(name), sounds, tmp_path, Watch(), epochs=1, limit_train_batches=1)
    # What only a decoder's class token would need is not there.
    assert [n for n, has in seen.items() if not has] == []
    parts = {n.split(".")[1] for n in seen}
    assert (
        parts
        == {
            "audiomae": {"encoder", "decoder"},
            "mam_clap": {"encoder", "decoder", "distillation"},
            "supmam": {"encoder", "decoder", "classification"},
            "supmam_clap": {"encoder", "decoder", "distillation", "classification"},
            "classification": {"encoder", "classification"},
            "mae_ast": {"encoder", "decoder", "contrastive"},
        }[name]
    )
    pixels = any("decoder.pred" in n for n in seen)
    assert pixels == (SYSTEMS[name].get("reconstruction", 1.0) > 0)


def test_loss_is_the_weighted_sum_of_its_objectives_written_out() -> None:
    task = built(classification=0.5, reconstruction=3.0, mask_ratio=0.4)
    task.eval()
    batch = heard(task)
    losses = task.losses(batch, "val")
    hidden = losses.views["reconstruction"].masked
    assert hidden.sum(dim=1).tolist() == [32 - 19] * 6
    model, branch = task.model, task.parts["classification"].branch
    tokens = model.tokens(batch["log_mel"], hidden)
    visible = (~hidden).nonzero()[:, 1].view(6, -1)
    drawn = model.decoder.pred(model.decoder(tokens, visible, 32))
    patches = model.encoder.patches(batch["log_mel"])
    rec = masked_patch_error(drawn, model.targets(patches), hidden)
    pooled = tokens[:, 1:].mean(dim=1)
    target = nn.functional.one_hot(batch["target"], 4).float()
    cls = label_loss(branch(pooled), target)
    torch.testing.assert_close(losses.terms["reconstruction"].loss, rec)
    torch.testing.assert_close(losses.terms["classification"].loss, cls)
    torch.testing.assert_close(losses.total, 3 * rec + 0.5 * cls)


@pytest.mark.parametrize("path", ["direct", "decoder"])
def test_features_of_visible_patches_come_from_where_they_should(path: str) -> None:
    task = small(**FACTS | {"frames": 64}, **SYSTEMS["mam_clap"], visible_path=path)
    task._trainer = StandIn()  # type: ignore[assignment]
    task.parts["distillation"].width = 6
    task.build(initialise=False)
    task.eval()
    batch = heard(task)
    features = nn.functional.normalize(torch.randn(6, 32, 6), dim=-1)
    task.parts["distillation"].targets = SimpleNamespace(of=lambda *_: features)  # type: ignore[assignment]
    losses = task.losses(batch, "val")
    model, hidden = task.model, losses.views["distillation"].masked
    tokens = model.tokens(batch["log_mel"], hidden)
    visible = (~hidden).nonzero()[:, 1].view(6, -1)
    y = model.decoder(tokens, visible, 32)
    if path == "direct":
        own = model.decoder.embed(tokens[:, 1:])
        y = y.clone()
        for clip in range(6):
            y[clip, visible[clip]] = own[clip]
    y = task.parts["distillation"].head.norm(task.parts["distillation"].head.fc(y))
    # 62 frames of sound: the last column of patches holds padding.
    sound = torch.arange(32)[None].expand(6, -1) < 24
    torch.testing.assert_close(losses.total, feature_loss(y, features, hidden, sound))
    task.parts["distillation"].padding = "keep"
    kept = task.losses(heard(task), "val")
    everything = feature_loss(y, features, hidden, torch.ones_like(hidden))
    torch.testing.assert_close(kept.total, everything)


def test_gradient_norms_are_those_of_each_weighted_objective() -> None:
    task = built(classification=0.5, mask_ratio=0.4)
    losses = task.losses(heard(task), "train")
    norms = losses.gradient_norms()
    for name, weight in (("reconstruction", 1.0), ("classification", 0.5)):
        (gradient,) = torch.autograd.grad(
            losses.terms[name].loss, losses.views[name].tokens, retain_graph=True
        )
        torch.testing.assert_close(norms[name], weight * gradient.norm())
    losses.total.backward()


# --- masks ----------------------------------------------------------------------------------


def test_masks_follow_the_place_in_training_and_in_evaluation_the_clip() -> None:
    task = built()
    batch = heard(task)
    again, later = (
        task.masked_patches(batch, "train"),
        task.masked_patches({**batch, "step": 5}, "train"),
    )
    assert torch.equal(task.masked_patches(batch, "train"), again)
    assert not torch.equal(again, later)
    task._trainer.current_epoch = 1
    assert not torch.equal(task.masked_patches(batch, "train"), again)
    fixed = task.masked_patches(batch, "val")
    reversed_ids = {**batch, "id": batch["id"][::-1], "step": 9}
    assert torch.equal(task.masked_patches(reversed_ids, "val"), fixed.flip(0))
    assert (fixed.sum(dim=1) == 32 - int(32 * 0.2)).all()


def test_structured_masks_hide_whole_columns_and_bands() -> None:
    task = built(masking="structured", time_ratio=0.5, freq_ratio=0.25)
    hidden = task.masked_patches(heard(task), "train").view(6, 4, 8)
    times, bands = hidden.all(dim=2), hidden.all(dim=1)
    assert times.sum(dim=1).tolist() == [2] * 6
    assert bands.sum(dim=1).tolist() == [2] * 6
    assert torch.equal(hidden, times[:, :, None] | bands[:, None])


def test_a_share_of_the_visible_patches_is_pooled() -> None:
    task = built(reconstruction=0.0, classification=1.0, mask_ratio=0.4, visible_fraction=0.5)
    task.eval()
    batch = heard(task)
    taken: list[torch.Tensor] = []
    branch = task.parts["classification"].branch.forward
    task.parts["classification"].branch.forward = lambda rows: taken.append(rows) or branch(rows)  # type: ignore[func-returns-value]
    losses = task.losses(batch, "val")
    hidden = losses.views["classification"].masked
    tokens = task.model.tokens(batch["log_mel"], hidden)[:, 1:]
    assert not torch.allclose(taken[0], tokens.mean(dim=1), atol=1e-4)
    # The mean of 10 of 19 tokens: no token outside of them has a gradient.
    (gradient,) = torch.autograd.grad(losses.total, losses.views["classification"].tokens)
    assert (gradient.abs().sum(dim=2) > 0).sum(dim=1).tolist() == [10] * 6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask_ratio": 0.0}, r"RandomPatches\.init_args\.ratio` is 0\.0"),
        ({"mask_ratio": 1.0}, r"RandomPatches\.init_args\.ratio` is 1\.0"),
        ({"mask_ratio": float("nan")}, r"RandomPatches\.init_args\.ratio` is nan"),
        ({"masking": "structured", "time_ratio": 1.0}, r"init_args\.time_ratio` is 1\.0"),
        ({"masking": "structured", "freq_ratio": 0.0}, r"init_args\.freq_ratio` is 0\.0"),
        ({"objectives": {"a": None}}, r"objectives` is empty"),
        ({"classification": -1.0}, r"objectives\.classification\.init_args\.weight` is -1\.0"),
        (
            {"reconstruction": float("nan")},
            r"reconstruction\.init_args\.weight` is nan",
        ),
        ({"classification": 1.0, "visible_fraction": 0.0}, r"visible_fraction` is 0\.0"),
        ({"lr": float("nan")}, "lr` is nan"),
        ({"classification": 1.0, "temperature": 0.0}, r"temperature` is 0\.0"),
        ({"lr": -1.0}, r"lr` is -1\.0"),
        ({"distillation": 1.0, "roll_gain": "official"}, "roll_gain` is official.*distillation"),
    ],
)
def test_impossible_settings_name_their_key(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small(**settings)


@pytest.mark.parametrize("name", ["forward", "training", "a.b", "", "loss", "valid_mse"])
def test_an_objective_is_not_called_what_torch_or_the_log_has(name: str) -> None:
    with pytest.raises(ConfigError, match=f"objectives` has the name {name!r}"):
        small(objectives={name: Reconstruction()})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"frames": 70}, "`frames` is 70, which is no multiple of the patch's 16 frames"),
        ({"mask_ratio": 0.99}, r"init_args\.masking`.*ratio.*0 of 32"),
        (
            {"masking": "structured", "time_ratio": 0.9},
            r"init_args\.masking`.*time_ratio and freq_ratio.*0 of 32",
        ),
        ({"classification": 1.0, "labels": []}, "LabelClassification, and the data has no"),
        ({"decoder_heads": 5}, "decoder_width is 32: it must be a multiple of 4 and of"),
    ],
)
def test_shapes_that_cannot_be_are_refused_when_the_data_is_known(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        built(**settings)


def test_a_side_that_no_patch_fills_is_cut_only_where_patches_overlap() -> None:
    assert built(frames=70, stride=(10, 10)).model.grid == (12, 6)


def test_masking_of_fine_tuning_has_no_place_here(sounds: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"`masking` .*`model\.init_args\.masking`"):
        train(small(), sounds, tmp_path, SpecAugment(20, 24), epochs=1)


# --- labels ---------------------------------------------------------------------------------


class Unlabel(Callback):
    """Takes the labels of some clips of each training batch away."""

    def __init__(self, keep: int) -> None:
        self.keep = keep

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        batch["labelled"][self.keep :] = False
        # What nobody may read.
        batch["target"][self.keep :] = 3


@pytest.mark.parametrize(("keep", "left_out"), [(8, 0), (3, 5), (1, 8), (0, 8)])
def test_clips_without_labels_are_skipped_counted_and_logged(
    keep: int, left_out: int, sounds: Path, tmp_path: Path
) -> None:
    without: set[str] = set()

    class Watch(Callback):
        def on_after_backward(self, trainer: Trainer, pl_module: Any) -> None:
            without.update(n for n, p in pl_module.named_parameters() if p.grad is None)

    task = system("supmam")
    train(task, sounds, tmp_path, Unlabel(keep), Watch(), epochs=1)
    # DistributedDataParallel would wait for a weight without a gradient.
    assert not without
    assert logged(tmp_path, "train/unlabelled") == [4 * left_out]
    (mean,) = logged(tmp_path, "train/classification") or [float("nan")]
    # A BatchNorm cannot do with one clip, so a lone label is left out too.
    assert np.isnan(mean) if keep < 2 else mean > 1
    assert np.isfinite(logged(tmp_path, "train/reconstruction")).all()
    assert all(p.isfinite().all() for p in task.parameters())
    running = task.parts["classification"].branch.norm.running_mean
    assert running.isfinite().all()
    assert bool(running.any()) == (keep >= 2)


def test_only_labelled_clips_reach_the_branch_and_their_own_targets() -> None:
    task = built(classification=1.0, mask_ratio=0.4)
    known = torch.tensor([True, False, True, True, False, False])
    torch.manual_seed(1)
    part = task.losses(heard(task, labelled=known), "train")
    loss = part.terms["classification"].loss
    batch = heard(task)
    hidden = task.masked_patches(batch, "train")
    tokens = task.model.tokens(batch["log_mel"], hidden)[known]
    target = nn.functional.one_hot(batch["target"], 4).float()[known]
    task.parts["classification"].branch.norm.reset_running_stats()
    torch.testing.assert_close(
        loss, label_loss(task.parts["classification"].branch(tokens[:, 1:].mean(1)), target)
    )
    assert part.terms["classification"].sums["unlabelled"] == 3
    assert torch.equal(part.terms["classification"].targets, target)


def test_each_clip_weighs_the_same_on_whichever_process_it_is() -> None:
    """Two processes with 4 and 2 labelled clips: the mean of their losses is that of all six."""
    task = built(classification=1.0, reconstruction=0.0, label_norm="none", mask_ratio=0.4)
    batch = heard(task)
    task._trainer.world_size = 2
    values = []
    for known in ((0, 1, 2, 3), (4, 5)):
        labelled = torch.zeros(6, dtype=torch.bool)
        labelled[list(known)] = True
        task._trainer.strategy = SimpleNamespace(
            reduce=lambda count, reduce_op: {"sum": torch.tensor(6.0)}[reduce_op]
        )
        values.append(task.losses({**batch, "labelled": labelled}, "train").total)
    task._trainer.world_size = 1
    torch.testing.assert_close(sum(values) / 2, task.losses(batch, "train").total)


@pytest.mark.parametrize(("everywhere", "takes_part"), [(5.0, True), (1.0, False)])
def test_a_shared_batch_norm_waits_for_processes_without_labels(
    everywhere: float, takes_part: bool
) -> None:
    """One process has no labels; the others wait for its part of the statistics, or none does."""
    task = built(classification=1.0, label_norm="sync", mask_ratio=0.4)
    assert isinstance(task.parts["classification"].branch.norm, nn.SyncBatchNorm)
    rows: list[int] = []

    def shared(x: torch.Tensor) -> torch.Tensor:
        rows.append(len(x))
        return x

    task.parts["classification"].branch.norm.forward = shared  # type: ignore[method-assign]
    task._trainer.world_size = 2
    task._trainer.strategy = SimpleNamespace(reduce=lambda *_, **__: torch.tensor(everywhere))
    batch = heard(task, labelled=torch.zeros(6, dtype=torch.bool))
    losses = task.losses(batch, "train")
    assert rows == ([0] if takes_part else [])
    assert losses.terms["classification"].loss == 0
    assert losses.terms["classification"].sums["unlabelled"] == 6
    losses.total.backward()
    assert all(p.grad is not None for p in task.objectives.parameters())


def test_a_batch_of_one_and_a_batch_norm(sounds: Path, tmp_path: Path) -> None:
    one = data(sounds, batch_size=1)
    with pytest.raises(ConfigError, match=r"batch_size` is 1, and .*norm: none"):
        train(system("supmam"), sounds, tmp_path, clip_set=one)
    train(
        system("supmam", label_norm="none"),
        sounds,
        tmp_path,
        clip_set=one,
        epochs=1,
        limit_train_batches=2,
    )
    # The same batch size is no matter without a branch.
    train(small(), sounds, tmp_path, clip_set=one, epochs=1, limit_train_batches=2)


def test_evaluation_needs_no_two_clips(sounds: Path, tmp_path: Path) -> None:
    alone = data(sounds, eval_batch_size=1)
    trainer = train(system("supmam"), sounds, tmp_path, clip_set=alone, epochs=1)
    assert trainer.callback_metrics["val/classification"] > 0
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    (scores,) = quiet_trainer(tmp_path).validate(
        system("supmam"),
        datamodule=data(sounds, batch_size=1),
        ckpt_path=tmp_path / "run.ckpt",
        verbose=False,
        weights_only=True,
    )
    assert scores["val/classification"] > 0


# --- teachers -------------------------------------------------------------------------------


def cache(folder: Path, sounds: Path, teacher: Teacher, leave_out: int = 0) -> Path:
    """A teacher's maps of every clip of the sounds, made clip by clip."""
    from peas.data.columns import Strings
    from peas.teachers.cache import TargetSettings
    from peas.teachers.target_writer import Block, ids_sum, teacher_samples, write_targets

    module = data(sounds)
    module.setup("fit")
    module.teacher_rate = teacher.rate
    samples = teacher_samples(64, teacher.rate)
    maps: dict[str, np.ndarray] = {}
    for split in ("train", "val"):
        clip_set = module.clips(split)
        loader = module.train_dataloader() if split == "train" else module.val_dataloader()
        for batch in loader:
            sound = batch["teacher_waveform"][:, :samples]
            sound = nn.functional.pad(sound, (0, samples - sound.shape[1]))
            found = teacher(sound, batch["teacher_length"].clamp(max=samples))
            for name, one in zip(batch["id"], found, strict=True):
                maps[name] = one.permute(1, 2, 0).half().numpy()
        assert set(clip_set.ids) <= set(maps)
    names = sorted(maps)[leave_out:]
    rows = np.stack([maps[name] for name in names])

    class Rows:
        def blocks(self, shards: Any) -> Any:
            for shard in shards:
                yield Block(rows[shard.start : shard.stop], [])

    recipe = TargetSettings(
        teacher=teacher.name,
        fingerprint=teacher.fingerprint,
        first_centre=EXTENT.first_centre,
        step=EXTENT.step,
        freq_edges=list(EXTENT.freq_edges),
        shape=list(rows.shape[1:]),
        sound="",
        set="sounds",
        clips=len(names),
        ids=ids_sum(names),
        shard_clips=16,
    )
    write_targets(folder, recipe, Strings(names), Rows())
    return folder


@pytest.fixture(scope="module")
def targets(sounds: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cache(tmp_path_factory.mktemp("targets") / "cache", sounds, ToyTeacher())


def test_a_cache_and_its_teacher_train_alike(sounds: Path, targets: Path, tmp_path: Path) -> None:
    first = []
    for folder, settings in (("live", {}), ("cached", {"targets": str(targets)})):
        task = system("mam_clap", **settings)
        train(task, sounds, tmp_path / folder, epochs=1, limit_train_batches=1)
        first += logged(tmp_path / folder, "train/loss")
    # The cache has half precision.
    assert first[0] == pytest.approx(first[1], rel=1e-3)
    cached = system("mam_clap", targets=str(targets))
    train(cached, sounds, tmp_path / "on")
    both = system("mam_clap", targets=str(targets), teacher=ToyTeacher())
    train(both, sounds, tmp_path / "both")
    assert all(map(torch.equal, cached.parameters(), both.parameters()))
    assert not both.parts["distillation"].teacher.moved


def test_a_teacher_and_a_cache_of_another_are_refused(
    sounds: Path, targets: Path, tmp_path: Path
) -> None:
    other = system("mam_clap", targets=str(targets), teacher=ToyTeacher(1))
    with pytest.raises(DataError, match=r"maps of another teacher \(Toy 0, .* \(Toy 1, "):
        train(other, sounds, tmp_path)


def test_missing_targets_are_told_before_anything_is_trained(sounds: Path, tmp_path: Path) -> None:
    folder = cache(tmp_path / "cache", sounds, ToyTeacher(), leave_out=3)
    steps: list[int] = []

    class Count(Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            steps.append(1)

    with pytest.raises(DataError, match="no target of 3 of 8 clips") as caught:
        train(system("mam_clap", targets=str(folder)), sounds, tmp_path, Count())
    assert str(folder) in str(caught.value)
    assert not steps


def test_distillation_without_a_teacher_names_both_keys(sounds: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"objectives.*`targets`.*`teacher`"):
        train(small(**SYSTEMS["mam_clap"]), sounds, tmp_path)


def test_mixed_clips_have_no_teacher(sounds: Path, targets: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.init_args\.mixup is 0\.5"):
        train(
            system("mam_clap", targets=str(targets)),
            sounds,
            tmp_path,
            clip_set=data(sounds, mixup=0.5),
        )


def test_a_teacher_is_untouched_by_fit_and_nowhere_in_the_run(sounds: Path, tmp_path: Path) -> None:
    teacher = ToyTeacher()
    before = {key: value.clone() for key, value in teacher.network.state_dict().items()}
    task = system("supmam_clap", teacher=teacher)
    trainer = train(task, sounds, tmp_path)
    after = teacher.network.state_dict()
    assert before.keys() == after.keys()
    assert "norm.running_mean" in before
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert not any(p.requires_grad or p.grad is not None for p in teacher.network.parameters())
    assert not any(m.training for m in teacher.network.modules())
    own = {id(p) for p in teacher.network.parameters()}
    groups = trainer.optimizers[0].param_groups
    assert not own & {id(p) for group in groups for p in group["params"]}
    assert not own & {id(p) for p in task.parameters()}
    assert not any(module is teacher.network for module in task.modules())
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    content = torch.load(tmp_path / "run.ckpt", weights_only=True)
    shapes = {tuple(value.shape) for value in before.values()}
    assert not [k for k, v in content["state_dict"].items() if "ear" in k or "teacher" in k]
    assert (12, 2) in shapes
    assert (12, 2) not in {tuple(v.shape) for v in content["state_dict"].values()}
    assert "teacher" not in content["hyper_parameters"]
    assert content["hyper_parameters"]["objective_fingerprints"] == {
        "distillation": {"width": 6, "fingerprint": teacher.fingerprint}
    }


@pytest.mark.parametrize("hook", ["on_fit_start", "on_validation_start", "on_test_start"])
def test_the_teacher_is_moved_to_the_device_of_the_batches(hook: str) -> None:
    task = small(**SYSTEMS["mam_clap"], **FACTS | {"frames": 64}, teacher=(teacher := ToyTeacher()))
    module = SimpleNamespace(mixup=0.0, frames=64, teacher_rate=None, batch_size=8, info=None)
    device = torch.device("meta")
    # In `setup` the trainer's device is still the CPU.
    task._trainer = StandIn(  # type: ignore[assignment]
        datamodule=module,
        strategy=SimpleNamespace(root_device=device),
        ckpt_path=None,
        optimizers=[torch.optim.SGD([{"params": [torch.zeros(1)], "name": "all"}], lr=0.1)],
    )
    task.setup("fit")
    assert module.teacher_rate == 8_000
    assert not teacher.moved
    getattr(task, hook)()
    assert teacher.moved == [device]
    assert all(p.device == device for p in teacher.network.parameters())
    assert all(b.device == device for b in teacher.network.buffers())


def test_a_run_with_other_features_cannot_be_continued(
    sounds: Path, targets: Path, tmp_path: Path
) -> None:
    trainer = train(system("mam_clap", targets=str(targets)), sounds, tmp_path, epochs=1)
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    with pytest.raises(CheckpointError, match=r"objectives\.distillation`"):
        train(
            system("mam_clap", teacher=ToyTeacher(1)), sounds, tmp_path, start=tmp_path / "run.ckpt"
        )


# --- resuming -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*PAPERS, "classification"])
@pytest.mark.parametrize("inside", [True, False], ids=["inside", "epoch"])
def test_a_resumed_run_equals_the_unbroken_one(
    name: str, inside: bool, sounds: Path, targets: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"drop_path": 0.2, "grad_norm_every": 3, "visible_fraction": 0.5}
    if distils(name):
        settings["targets"] = str(targets)
    every = {"every_n_train_steps": 1} if inside else {"save_on_train_epoch_end": True}

    def keeper(folder: Path) -> ModelCheckpoint:
        return ModelCheckpoint(folder, "{step}", save_top_k=-1, **every)  # type: ignore[arg-type]

    whole = system(name, **settings)
    first = train(whole, sounds, tmp_path / "a", keeper(tmp_path / "a" / "kept"), epochs=3)
    # Four steps an epoch: after the sixth, or after the second epoch.
    start = tmp_path / "a" / "kept" / f"step={6 if inside else 8}.ckpt"
    again = system(name, **settings)
    torch.manual_seed(99)
    second = train(
        again, sounds, tmp_path / "b", keeper(tmp_path / "b" / "kept"), start=start, epochs=3
    )
    assert second.global_step == first.global_step == 12
    wanted = whole.state_dict()
    assert wanted.keys() == again.state_dict().keys()
    for key, value in again.state_dict().items():
        assert torch.equal(value, wanted[key]), key
    for a, b in zip(
        first.optimizers[0].state.values(), second.optimizers[0].state.values(), strict=True
    ):
        assert torch.equal(a["exp_avg_sq"], b["exp_avg_sq"])
    for key, metric in first.callback_metrics.items():
        if key.startswith(("train/", "val/")):
            assert float(second.callback_metrics[key]) == float(metric), key


def test_objectives_in_another_order_go_on_with_their_own_moments(
    sounds: Path, targets: Path, tmp_path: Path
) -> None:
    def made(names: tuple[str, ...]) -> Pretraining:
        task = system("supmam_clap", targets=str(targets))
        parts = {name: task.parts[name] for name in names}
        torch.manual_seed(0)
        return small(objectives=parts, masking=task.patch_masking)

    names = ("distillation", "classification")
    whole = made(names)
    keeper = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, save_on_train_epoch_end=True)
    train(whole, sounds, tmp_path / "a", keeper)
    again = made(names[::-1])
    train(again, sounds, tmp_path / "b", start=tmp_path / "step=4.ckpt")
    for key, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key


def test_another_decoder_than_the_checkpoints_is_refused(sounds: Path, tmp_path: Path) -> None:
    trainer = train(small(), sounds, tmp_path, epochs=1)
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    with pytest.raises(CheckpointError, match=r"decoder_depth` is 1, but .* 2"):
        train(small(decoder_depth=1), sounds, tmp_path, start=tmp_path / "run.ckpt")


# --- hand-over ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["audiomae", "supmam"])
def test_what_was_pretrained_is_fine_tuned_with_peas(
    name: str, sounds: Path, tmp_path: Path
) -> None:
    task = system(name)
    trainer = train(task, sounds, tmp_path, epochs=1)
    file = tmp_path / "last.ckpt"
    trainer.save_checkpoint(file)
    tuned = classification(str(file), encoder="audiomae", size="toy", lr=1e-3)
    tuner = quiet_trainer(tmp_path, max_epochs=1, callbacks=[PEAS(1, 1, 20, 24, ramp="off")])
    tuner.fit(tuned, datamodule=data(sounds))
    assert float(tuner.callback_metrics["peas/e_rec"]) > 0
    assert float(tuner.callback_metrics["mask/adaptive_share"]) == 1
    fresh = classification(str(file), encoder="audiomae", size="toy", **FACTS | {"frames": 64})
    fresh.build(initialise=True)
    x = torch.randn(2, 64, 128)
    with torch.no_grad():
        ours = fresh.eval().model.reconstruct(x)
        assert torch.equal(ours, task.eval().model.reconstruct(x))


@pytest.mark.parametrize("name", ["mam_clap", "supmam_clap"])
def test_without_a_pixel_head_peas_is_refused_and_other_masks_work(
    name: str, sounds: Path, tmp_path: Path
) -> None:
    trainer = train(system(name), sounds, tmp_path, epochs=1)
    file = tmp_path / "last.ckpt"
    trainer.save_checkpoint(file)
    settings: dict[str, Any] = {"encoder": "audiomae", "size": "toy", "lr": 1e-3}
    tuner = quiet_trainer(tmp_path, max_epochs=1, callbacks=[PEAS(1, 1, 20, 24, ramp="off")])
    with pytest.raises(NoReconstruction, match="no trained pixel head"):
        tuner.fit(classification(str(file), **settings), datamodule=data(sounds))
    tuner = quiet_trainer(tmp_path, max_epochs=1, callbacks=[SpecAugment(20, 24)])
    tuner.fit(classification(str(file), **settings), datamodule=data(sounds))


def test_pretraining_goes_on_from_a_checkpoint(sounds: Path, tmp_path: Path) -> None:
    """SupMAM from an AudioMAE: encoder and decoder are taken, the branch begins anew."""
    task = small()
    trainer = train(task, sounds, tmp_path, epochs=1)
    trainer.save_checkpoint(tmp_path / "mae.ckpt")
    further = system("supmam", pretrained=str(tmp_path / "mae.ckpt"), **FACTS | {"frames": 64})
    further.build(initialise=True)
    for key, value in task.model.state_dict().items():
        assert torch.equal(further.model.state_dict()[key], value), key
    short = system("mam_clap", pretrained=str(tmp_path / "mae.ckpt"), **FACTS | {"frames": 64})
    short.parts["distillation"].width = 6
    short.build(initialise=True)
    encoder = "encoder.blocks.0.attn.qkv.weight"
    assert torch.equal(short.model.state_dict()[encoder], task.model.state_dict()[encoder])


def test_prediction_says_what_to_do_instead(sounds: Path, tmp_path: Path) -> None:
    task = small()
    trainer = train(task, sounds, tmp_path, epochs=1)
    with pytest.raises(ConfigError, match="fine-tune it first"):
        trainer.predict(task, datamodule=data(sounds), weights_only=True)
    assert trainer.test(task, datamodule=data(sounds), verbose=False)[0]["test/loss"] > 0


def test_test_of_a_checkpoint_hears_the_teacher(sounds: Path, tmp_path: Path) -> None:
    task = system("supmam_clap")
    trainer = train(task, sounds, tmp_path, epochs=1)
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    again = system("supmam_clap")
    fresh = quiet_trainer(tmp_path)
    (scores,) = fresh.validate(
        again,
        datamodule=data(sounds),
        ckpt_path=tmp_path / "run.ckpt",
        verbose=False,
        weights_only=True,
    )
    for key in ("val/distillation", "val/classification", "val/feature_mse"):
        assert scores[key] == pytest.approx(float(trainer.callback_metrics[key]), rel=1e-6)


def test_gradients_are_let_go_after_a_step_and_kept_while_they_gather(
    sounds: Path, tmp_path: Path
) -> None:
    held: list[bool] = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
            held.append(any(p.grad is not None for p in pl_module.parameters()))

    train(small(), sounds, tmp_path, Watch(), epochs=1, accumulate_grad_batches=2)
    assert held == [True, False, True, False]


# --- rate and precision ---------------------------------------------------------------------


def test_rate_is_a_cosine_of_the_fraction_of_the_epoch(sounds: Path, tmp_path: Path) -> None:
    task = small(lr=0.02, base_batch_size=256, warmup_epochs=1, min_lr=1e-5)
    train(task, sounds, tmp_path, epochs=3)
    rates, top = steps(tmp_path, "lr"), 0.02 * 8 / 256
    assert len(rates) == 12
    for step, rate in enumerate(rates):
        at = step / 4
        share = 0.5 * (1 + np.cos(np.pi * (at - 1) / 2))
        assert rate == pytest.approx(top * at if at < 1 else 1e-5 + (top - 1e-5) * share, rel=1e-5)
    groups = task.trainer.optimizers[0].param_groups
    assert {group["name"]: group["weight_decay"] for group in groups} == {
        "decay": 1e-4,
        "no_decay": 0.0,
    }
    assert all(p.ndim > 1 for p in groups[0]["params"])
    assert all(p.ndim <= 1 for p in groups[1]["params"])


@pytest.mark.parametrize("name", ["audiomae", "supmam_clap"])
def test_half_precision_is_near(name: str, sounds: Path, tmp_path: Path) -> None:
    losses = []
    for precision in ("32-true", "bf16-mixed"):
        folder = tmp_path / precision
        train(system(name), sounds, folder, precision=precision, epochs=1)
        losses.append(logged(folder, "train/loss")[0])
    assert losses[1] == pytest.approx(losses[0], rel=0.03)
