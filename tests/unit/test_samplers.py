"""Which clips an epoch has, in which order, and on which process."""

import numpy as np
import pytest
import torch

from peas.data.class_balance import MixtureSampler, UniformSampler, WeightedSampler, clip_weights
from peas.data.columns import Targets
from peas.data.distributed_samplers import EvaluationSampler, TrainSampler
from peas.errors import ConfigError, DataError


def _sampled(order, seed=0):
    return order.sample(torch.Generator().manual_seed(seed))


def test_weights_are_the_official_sum_over_classes():
    targets = Targets.several([[0], [0, 1], [], [0, 2]])
    weights = clip_weights(targets, 4)
    common, rare = 1000 / 3.01, 1000 / 1.01
    np.testing.assert_allclose(weights, [common, common + rare, 0, common + rare], rtol=1e-12)


def test_a_clip_without_a_class_weighs_exactly_nothing_in_a_large_set():
    """However much the sums before it have been rounded."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(0, 4, 5000)
    targets = Targets.several([rng.integers(0, 300, size).tolist() for size in sizes])
    weights = clip_weights(targets, 300)
    assert np.array_equal(weights == 0, sizes == 0)
    assert (weights[sizes > 0] > 1).all()
    drawn = _sampled(WeightedSampler(weights, 20_000)).numpy()
    assert (sizes[drawn] > 0).all()


def test_balanced_with_replacement_draws_in_proportion():
    weights = np.array([1.0, 0.0, 3.0, 6.0, 0.0])
    drawn = _sampled(WeightedSampler(weights, 100_000)).numpy()
    share = np.bincount(drawn, minlength=5) / len(drawn)
    np.testing.assert_allclose(share, weights / 10, atol=0.006)
    assert share[1] == share[4] == 0


def test_balanced_without_replacement_repeats_nothing_and_prefers_the_heavy():
    weights = np.array([1.0] * 500 + [9.0] * 500 + [0.0] * 100)
    drawn = _sampled(WeightedSampler(weights, 300, replacement=False)).numpy()
    assert len(set(drawn)) == 300
    assert drawn.max() < 1000
    heavy = (drawn >= 500).mean()
    # Expected 0.86 for successive draws; a uniform choice would give 0.5.
    assert 0.78 < heavy < 0.94
    first, last = (drawn[:150] >= 500).mean(), (drawn[150:] >= 500).mean()
    assert abs(first - last) < 0.15


def test_without_replacement_can_take_all_that_have_a_weight():
    weights = np.array([0.0, 1.0, 5.0, 0.0, 2.0])
    assert sorted(_sampled(WeightedSampler(weights, 3, replacement=False)).tolist()) == [1, 2, 4]
    with pytest.raises(ConfigError, match=r"epoch_clips is 4 .* has 3 clips"):
        WeightedSampler(weights, 4, replacement=False)
    with pytest.raises(ConfigError, match="no training clip has a class"):
        WeightedSampler(np.zeros(3), 2)


@pytest.mark.parametrize("replacement", [True, False])
def test_ranks_share_one_weighted_epoch(replacement):
    order = WeightedSampler(np.linspace(1, 5, 60), 48, replacement=replacement)
    whole = list(TrainSampler(order, 6, seed=3))
    ranks = [list(TrainSampler(order, 2, rank=rank, world=3, seed=3)) for rank in range(3)]
    assert [ranks[place % 3][place // 3] for place in range(48)] == whole
    if not replacement:
        assert len({key.clip for keys in ranks for key in keys}) == 48
    sampler = TrainSampler(order, 6, seed=3)
    sampler.set_epoch(1)
    assert [key.clip for key in sampler] != [key.clip for key in whole]


def test_sets_come_as_often_as_their_weights():
    order = MixtureSampler([10, 8, 5], [1.0, 0.25, 2.0])
    first, second = _sampled(order, 0).numpy(), _sampled(order, 1).numpy()
    assert order.repeats
    assert order.count == len(first) == 22
    counts = np.bincount(first, minlength=23)
    assert counts[:10].tolist() == [1] * 10
    assert sorted(counts[10:18]) == [0] * 6 + [1] * 2
    assert counts[18:].tolist() == [2] * 5
    # Another quarter in another epoch, and another order.
    assert set(first[(first >= 10) & (first < 18)]) != set(second[(second >= 10) & (second < 18)])
    assert first.tolist() != second.tolist()
    with pytest.raises(ConfigError, match="2 entries for 3 sets"):
        MixtureSampler([1, 2, 3], [1, 1])
    with pytest.raises(ConfigError, match="give 0 or more"):
        MixtureSampler([1, 2], [1, -1])
    with pytest.raises(ConfigError, match="no clip of any set"):
        MixtureSampler([1, 2], [0, 0.1])


def test_each_once_is_a_permutation():
    assert sorted(_sampled(UniformSampler(9)).tolist()) == list(range(9))
    assert not UniformSampler(9).repeats


def test_order_depends_on_seed_and_epoch_alone():
    sampler = TrainSampler(UniformSampler(50), 4, seed=1)
    first, again = list(sampler), list(sampler)
    assert first == again
    sampler.set_epoch(1)
    assert [key.clip for key in sampler] != [key.clip for key in first]
    other = TrainSampler(UniformSampler(50), 4, seed=2)
    assert [key.clip for key in other] != [key.clip for key in first]


def test_drops_what_does_not_fill_a_global_batch():
    sampler = TrainSampler(UniformSampler(50), 4, world=3)
    assert len(sampler) == len(list(sampler)) == 16
    keys = list(TrainSampler(UniformSampler(50), 4))
    assert len(keys) == 48
    assert len({key.clip for key in keys}) == 48


def test_ranks_split_the_order_of_one_process():
    whole = list(TrainSampler(UniformSampler(48), 6, seed=3))
    ranks = [
        list(TrainSampler(UniformSampler(48), 2, rank=rank, world=3, seed=3)) for rank in range(3)
    ]
    assert [ranks[place % 3][place // 3] for place in range(48)] == whole
    for keys in ranks:
        for place, key in enumerate(keys):
            assert key.position // 6 == place // 2


def test_skip_holds_once():
    sampler = TrainSampler(UniformSampler(20), 4)
    whole = list(sampler)
    sampler.skip = 8
    assert list(sampler) == whole[8:]
    assert list(sampler) == whole


def test_too_few_clips_name_batch_and_processes():
    with pytest.raises(DataError, match=r"7 clips.*batch size 4 on 2 processes"):
        TrainSampler(UniformSampler(7), 4, world=2)


def test_evaluation_counts_each_clip_once():
    shares = [EvaluationSampler(21, rank=rank, world=4) for rank in range(4)]
    assert sorted(index for share in shares for index in share) == list(range(21))
    assert [len(share) for share in shares] == [6, 5, 5, 5]
