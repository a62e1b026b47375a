import pytest

from peas.data.samplers import EvaluationSampler, TrainSampler, UniformSampler
from peas.errors import DataError


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
