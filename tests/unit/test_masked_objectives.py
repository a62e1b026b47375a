"""Losses of masked audio modelling against loops, and their trivial predictors by brute force."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional
from two_processes import SHARES, branch_on, pooled_rows, share_norm

from peas.evaluation.baselines import BaselineError, LabelPrior
from peas.objectives import feature_loss, feature_targets, label_loss, masked_patch_error
from peas.objectives.base import sound_patches
from peas.objectives.feature_distillation import FeatureHead
from peas.objectives.label_classification import LabelBranch, LabelNorm


def drawn(batch=4, count=12, width=6, seed=0):
    source = torch.Generator().manual_seed(seed)
    y = torch.randn(batch, count, width, generator=source)
    t = torch.randn(batch, count, width, generator=source)
    hidden = torch.rand(batch, count, generator=source) < 0.3
    counted = torch.rand(batch, count, generator=source) < 0.7
    # A clip without a counted hidden patch, one without any, one with all.
    hidden[0] = False
    counted[1] = False
    counted[2] = True
    return y, t, hidden, counted


def one(y, t, kind):
    """Error of one patch."""
    if kind == "cosine":
        return 1 - torch.dot(y, t) / (y.norm() * t.norm())
    if kind == "smooth_l1":
        d = (y - t).abs()
        return torch.where(d < 1, 0.5 * d**2, d - 0.5).mean()
    if kind == "mse":
        return ((y - t) ** 2).mean()
    return ((y - t) ** 2).sum()


@pytest.mark.parametrize("kind", ["mse", "l2", "frobenius", "cosine", "smooth_l1"])
def test_feature_loss_is_a_loop_over_clips_and_sets(kind):
    y, t, hidden, counted = drawn()
    total = 0.0
    for of_set in (False, True):
        means = []
        for clip in range(len(y)):
            errors = [
                one(y[clip, n], t[clip, n], kind)
                for n in range(y.shape[1])
                if counted[clip, n] and bool(hidden[clip, n]) == of_set
            ]
            if not errors:
                continue
            if kind == "l2":
                means.append(sum(e.sqrt() for e in errors) / len(errors))
            elif kind == "frobenius":
                means.append(sum(errors).sqrt() / len(errors))
            else:
                means.append(sum(errors) / len(errors))
        total = total + sum(means) / len(means)
    got = feature_loss(y, t, hidden, counted, kind)
    torch.testing.assert_close(got, total, rtol=1e-5, atol=0)


@pytest.mark.parametrize("kind", ["mse", "l2", "frobenius", "cosine", "smooth_l1"])
def test_gradients_of_the_feature_loss_are_finite_everywhere(kind):
    y, t, hidden, counted = drawn()
    y[3] = t[3]  # Met exactly.
    y.requires_grad_()
    t.requires_grad_()
    feature_loss(y, t, hidden, counted, kind).backward()
    assert y.grad.isfinite().all()
    assert not y.grad[~counted].any()
    assert t.grad is None
    # Nothing counts at all.
    nothing = feature_loss(y, t, hidden, torch.zeros_like(counted), kind)
    assert nothing == 0
    nothing.backward()


def test_at_a_fifth_hidden_a_hidden_patch_weighs_four_times_a_visible_one():
    y, t = torch.zeros(1, 10, 1, requires_grad=True), torch.ones(1, 10, 1)
    hidden = torch.arange(10)[None] < 2
    feature_loss(y, t, hidden, torch.ones_like(hidden)).backward()
    assert (y.grad[0, 0] / y.grad[0, 9]).item() == pytest.approx(4)


def test_masked_patch_error_is_a_loop():
    y, t, _, _ = drawn()
    hidden = torch.zeros(4, 12, dtype=torch.bool)
    hidden[:, 2:5] = True
    errors = [((y[b, n] - t[b, n]) ** 2).mean() for b in range(4) for n in range(2, 5)]
    expected = sum(errors) / len(errors)
    torch.testing.assert_close(masked_patch_error(y, t, hidden), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("norm", ["l2", "layer", "none"])
def test_targets_are_the_maps_cells_at_the_patches(norm):
    maps = torch.randn(2, 5, 2, 3, dtype=torch.float64).half()
    matrix = torch.rand(4, 6)
    matrix = matrix / matrix.sum(dim=1, keepdim=True)
    got = feature_targets(maps, matrix, norm)
    for clip in range(2):
        for n in range(4):
            row = sum(
                matrix[n, 3 * f + s] * maps[clip, :, f, s].float()
                for f in range(2)
                for s in range(3)
            )
            if norm == "l2":
                row = row / row.norm()
            elif norm == "layer":
                row = (row - row.mean()) / (row.var(unbiased=False) + 1e-5).sqrt()
            torch.testing.assert_close(got[clip, n], row, rtol=0, atol=1e-5)


def test_label_loss_of_one_label_is_plain_cross_entropy():
    logits = torch.randn(7, 5)
    classes = torch.randint(5, (7,))
    one_hot = functional.one_hot(classes, 5).float()
    expected = functional.cross_entropy(logits / 10, classes)
    for kind in ("soft", "multi_hot"):
        torch.testing.assert_close(label_loss(logits, one_hot, kind), expected)
    torch.testing.assert_close(
        label_loss(logits, one_hot, "soft", temperature=0.5),
        functional.cross_entropy(logits / 0.5, classes),
    )


def test_label_loss_of_several_labels_is_a_loop():
    logits, target = torch.randn(6, 5), (torch.rand(6, 5) < 0.5).float()
    target[:, 0] = 1
    log_p = (logits / 10).log_softmax(dim=1)
    soft, raw = [], []
    for clip in range(6):
        labels = target[clip].nonzero().flatten().tolist()
        soft.append(-sum(log_p[clip, c] for c in labels) / len(labels))
        raw.append(-sum(log_p[clip, c] for c in labels))
    torch.testing.assert_close(label_loss(logits, target, "soft"), sum(soft) / 6)
    torch.testing.assert_close(label_loss(logits, target, "multi_hot"), sum(raw) / 6)
    torch.testing.assert_close(
        label_loss(logits, target, "bce"),
        functional.binary_cross_entropy_with_logits(logits / 10, target),
    )


@pytest.mark.parametrize("kind", ["soft", "multi_hot", "bce"])
def test_no_constant_prediction_beats_the_prior(kind):
    source = torch.Generator().manual_seed(1)
    target = (torch.rand(40, 4, generator=source) < torch.tensor([0.8, 0.3, 0.1, 0.5])).float()
    target[:, 0] = 1 if kind != "bce" else target[:, 0]
    prior = LabelPrior(4, kind)
    for batch in target.split(16):
        prior.update(batch)
    logits = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS([logits], max_iter=200, line_search_fn="strong_wolfe")

    def loss():
        search.zero_grad()
        value = label_loss_64(logits.expand(40, 4), target.double(), kind)
        value.backward()
        return value

    search.step(loss)
    assert prior.compute().item() == pytest.approx(loss().item(), abs=1e-6)


def label_loss_64(logits, target, kind):
    """`label_loss` at temperature 1 in float64."""
    if kind == "bce":
        return functional.binary_cross_entropy_with_logits(logits, target)
    if kind == "soft":
        target = target / target.sum(dim=1, keepdim=True)
    return -(target * logits.log_softmax(dim=1)).sum(dim=1).mean()


def test_no_constant_patch_beats_the_trivial_one():
    targets = torch.randn(3, 8, 5)
    targets[1, 2] = 0.25  # Constant: is not scored.
    valid = torch.rand(3, 8) < 0.8
    predictions = torch.randn(3, 8, 5)
    against = BaselineError(5)
    errors = (predictions - targets).square().mean(dim=2)
    for rows in ([0], [1, 2]):
        against.update(errors[rows], targets[rows], valid[rows])
    found = against.compute()
    kept = [
        (b, n)
        for b in range(3)
        for n in range(8)
        if valid[b, n] and targets[b, n].unique().numel() > 1
    ]
    rows = torch.stack([targets[b, n] for b, n in kept])
    best = (rows - rows.mean(dim=0)).square().mean()
    assert found["baseline_mse"].item() == pytest.approx(best.item(), rel=1e-6)
    mine = torch.stack([errors[b, n] for b, n in kept]).mean()
    assert found["valid_mse"].item() == pytest.approx(mine.item(), rel=1e-6)


@pytest.mark.parametrize("stride", [16, 10])
def test_a_patch_is_sound_if_all_its_frames_are(stride):
    valid = torch.ones(2, 32, dtype=torch.bool)
    valid[0, 31] = False
    columns = 1 + (32 - 16) // stride
    for time_major in (True, False):
        model = SimpleNamespace(
            grid=(3, columns), patch=(16, 16), stride=(stride, stride), time_major=time_major
        )
        found = sound_patches(model, valid)
        found = found.view(2, columns, 3).mT if time_major else found.view(2, 3, columns)
        ends = [n * stride + 16 <= 31 for n in range(columns)]
        assert found[0].tolist() == [ends] * 3
        assert found[1].all()


def test_head_begins_at_the_length_of_unit_targets():
    head = FeatureHead(16, 64, unit=True)
    y = head(torch.randn(50, 16))
    torch.testing.assert_close(y.norm(dim=1), torch.ones(50), rtol=1e-3, atol=0)
    raw = FeatureHead(16, 64, unit=False)(torch.randn(50, 16))
    torch.testing.assert_close(raw.norm(dim=1), torch.full((50,), 8.0), rtol=1e-3, atol=0)


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_a_branch_without_labels_still_gives_every_weight_a_gradient(norm):
    branch = LabelBranch(8, 16, 3, norm)
    branch.nothing().backward()
    assert all(p.grad is not None and not p.grad.any() for p in branch.parameters())
    assert branch(torch.randn(4, 8)).shape == (4, 3)


@pytest.mark.parametrize(
    ("shared", "alone", "device"),
    [
        ("none", "none", "cpu"),
        pytest.param(
            *("sync", "batch", "cuda"),
            marks=pytest.mark.skipif(
                not torch.cuda.is_available(), reason="SyncBatchNorm refuses the CPU"
            ),
        ),
    ],
)
def test_two_processes_classify_as_one(
    tmp_path: Path, shared: LabelNorm, alone: LabelNorm, device: str
) -> None:
    """Logits, gradients and statistics of unlike shares; on a GPU both processes have the first."""
    torch.multiprocessing.spawn(share_norm, (str(tmp_path), shared, device), nprocs=2)
    branch, logits = branch_on(pooled_rows(device), alone)
    wanted = {name: parameter.grad for name, parameter in branch.named_parameters()}
    wanted |= {name: buffer for name, buffer in branch.named_buffers() if "running" in name}
    close = {"rtol": 1e-4, "atol": 1e-4}
    for rank, rows in enumerate(SHARES):
        told = torch.load(tmp_path / f"branch{rank}", weights_only=True)
        torch.testing.assert_close(told.pop("logits"), logits[rows].cpu(), **close)
        assert told.keys() == wanted.keys()
        for name, value in wanted.items():
            torch.testing.assert_close(told[name], value.cpu(), **close)
