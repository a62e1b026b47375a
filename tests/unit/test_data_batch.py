import torch

from peas.data.batch import Item, Unreadable, collate
from peas.data.mixup import mix


def test_collate_pads_and_places():
    items = [
        Item(torch.ones(3), 1, "a", position=9),
        Unreadable("b", "b.wav: empty"),
        Item(torch.ones(5), 4, "c", position=13, mixed=True),
    ]
    batch = collate(items, global_size=8)
    assert batch["waveform"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch["length"].tolist() == [3, 5]
    assert batch["target"].dtype == torch.int64
    assert batch["target"].tolist() == [1, 4]
    assert batch["mixed"].tolist() == [False, True]
    assert batch["id"] == ["a", "c"]
    assert (batch["step"], batch["row"].tolist(), batch["global_size"]) == (1, [1, 5], 8)


def test_collate_of_evaluation_items_knows_no_step():
    batch = collate([Item(torch.ones(3), 1, "a")])
    assert "step" not in batch
    assert "row" not in batch


def _by_hand(a: list[float], b: list[float], weight: float) -> list[float]:
    a = [value - sum(a) / len(a) for value in a]
    b = [value - sum(b) / len(b) for value in b]
    b = (b + [0.0] * len(a))[: len(a)]
    mixture = [weight * x + (1 - weight) * y for x, y in zip(a, b, strict=True)]
    return [value - sum(mixture) / len(mixture) for value in mixture]


def test_mix_of_unequal_lengths_both_ways():
    long, short = [0.5, -0.25, 0.125, 0.75, 1.0], [0.25, 1.0, -0.5]
    for a, b in ((long, short), (short, long), (long, long)):
        mixed = mix(torch.tensor(a), torch.tensor(b), 0.3)
        torch.testing.assert_close(mixed, torch.tensor(_by_hand(a, b, 0.3)), atol=1e-6, rtol=0)
