"""The plateau schedule against PyTorch's."""

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from peas.errors import CheckpointError
from peas.recipes import SSASTPretrainingRecipe
from peas.recipes.ssast import Plateau, next_plateau

RISING = [0.1, 0.2, 0.2, 0.2, 0.2, 0.2, 0.3, 0.1, 0.30001, 0.29, 0.28, 0.4, 0.4, 0.4, 0.4, 0.4]
# Negative errors: what is worse by less than one part in ten thousand is taken as better.
NEGATIVE = [-0.5, -0.4, -0.40001, -0.40003, -0.6, -0.6, -0.6, -0.39, -0.38, -0.5, -0.5, -0.5, -0.5]


@pytest.mark.parametrize("values", [RISING, NEGATIVE])
@pytest.mark.parametrize("patience", [0, 2])
def test_the_rate_is_that_of_reduce_lr_on_plateau(values: list[float], patience: int) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = ReduceLROnPlateau(optimizer, mode="max", factor=0.5, patience=patience)
    state = Plateau()
    for turn, value in enumerate(values, start=1):
        scheduler.step(value)
        state = next_plateau(state, value, 4000 * turn, factor=0.5, patience=patience, every=4000)
        assert state.factor == optimizer.param_groups[0]["lr"]
    assert state.factor < 1.0


def test_evaluations_between_the_multiples_do_not_count() -> None:
    state, counted = Plateau(), []
    for step in range(30, 400, 30):
        after = next_plateau(state, 0.0, step, factor=0.5, patience=0, every=100)
        if after != state:
            counted.append(step)
        state = after
    # The first evaluation at or after 100, 200 and 300.
    assert counted == [120, 210, 300]


def test_one_evaluation_counts_once() -> None:
    state = next_plateau(Plateau(), 0.5, 100, factor=0.5, patience=0, every=100)
    assert next_plateau(state, 0.1, 100, factor=0.5, patience=0, every=100) == state


@pytest.mark.parametrize(
    "state", [{"best": "x"}, {"factor": None}, {"bad": True}, {"best": 1.0, "other": 2.0}]
)
def test_a_damaged_state_is_refused(state: dict[str, object]) -> None:
    with pytest.raises(CheckpointError, match="recipe"):
        SSASTPretrainingRecipe().load_state_dict(state)
