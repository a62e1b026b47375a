"""Errors over valid patches, and those of the best constant patch."""

import pytest
import torch

from peas.evaluation.baselines import BaselineError

SOURCE = torch.Generator().manual_seed(0)


def test_the_baseline_error_is_that_of_the_mean_patch() -> None:
    meter = BaselineError(4)
    batches = [torch.randn(3, 5, 4, generator=SOURCE) + 2 for _ in range(2)]
    # One constant patch, and one that is not valid: neither may count.
    batches[0][0, 0] = 7.0
    batches[1][2, 4] = 1e3
    kept, errors = [], []
    for number, patches in enumerate(batches):
        valid = torch.ones(3, 5, dtype=torch.bool)
        if number == 1:
            valid[2, 4] = False
        error = torch.rand(3, 5, generator=SOURCE)
        meter.update(error, patches, valid)
        counted = valid.clone()
        if number == 0:
            counted[0, 0] = False
        kept.append(patches[counted])
        errors.append(error[counted])
    patches = torch.cat(kept).double()
    found = meter.compute()
    wanted = (patches - patches.mean(0)).square().mean()
    assert float(found["baseline_mse"]) == pytest.approx(float(wanted), rel=1e-9)
    assert float(found["valid_mse"]) == pytest.approx(float(torch.cat(errors).mean()), rel=1e-6)


def test_no_constant_does_better() -> None:
    patches = torch.randn(2, 50, 4, generator=SOURCE)
    scores = {}
    for name, guess in (("mean", patches.mean((0, 1))), ("zero", torch.zeros(4))):
        meter = BaselineError(4)
        error = (patches - guess).square().mean(2)
        meter.update(error, patches, torch.ones(2, 50, dtype=torch.bool))
        scores[name] = meter.compute()
    assert float(scores["mean"]["valid_mse"]) == pytest.approx(
        float(scores["mean"]["baseline_mse"]), rel=1e-5
    )
    assert scores["zero"]["valid_mse"] > scores["zero"]["baseline_mse"]


def test_without_patches_there_is_no_figure() -> None:
    meter = BaselineError(4)
    meter.update(torch.zeros(1, 2), torch.zeros(1, 2, 4), torch.ones(1, 2, dtype=torch.bool))
    assert all(value.isnan() for value in meter.compute().values())
