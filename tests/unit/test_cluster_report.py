"""Ranks that see different things are told apart, and each message says what to do."""

from dataclasses import replace

import pytest

from peas.cli.cluster import CLOCK, Report, disagreements, ranks, table


@pytest.fixture
def reports() -> list[Report]:
    """Two hosts with two GPUs each, which agree."""
    one = Report(
        rank=0,
        local_rank=0,
        host="alpha",
        device="cuda:0 H100",
        gpu="gpu-0",
        versions={"peas": "1.0", "torch": "2.14.1"},
        data="/data/esc",
        clips={"train": 1600, "validation": 400, "test": None},
        digest="0a1b2c3d",
        run="/runs/x",
    )
    return [
        replace(
            one,
            rank=rank,
            local_rank=rank % 2,
            host="alpha" if rank < 2 else "beta",
            device=f"cuda:{rank % 2} H100",
            gpu=f"gpu-{rank}",
            # Within what network time leaves.
            clock=0.2 * rank,
        )
        for rank in range(4)
    ]


def test_ranks_that_see_the_same_agree(reports: list[Report]) -> None:
    assert disagreements(reports) == []
    assert disagreements(reports[:1]) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"versions": {"peas": "1.0", "torch": "2.13.0"}},
            ("torch is 2.14.1 on ranks 0-1, 3 (alpha, beta), 2.13.0 on rank 2 (beta)", "one image"),
        ),
        ({"versions": {"peas": "1.0"}}, ("missing on rank 2",)),
        (
            {"clips": {"train": 1599, "validation": 400, "test": None}, "digest": "ffffffff"},
            ("clips of train: 1600 on ranks 0-1, 3", "1599 on rank 2 (beta)", "peas data verify"),
        ),
        ({"digest": "ffffffff"}, ("other names or classes", "rank 2 (beta)")),
        ({"clock": CLOCK + 2}, ("clock of beta is 7 s", "NTP")),
        ({"clock": -CLOCK - 2}, ("clock of beta is 7 s",)),
        ({"run_seen": False}, ("rank 2 (beta): /runs/x is not", "share")),
        ({"gpu": "gpu-3"}, ("ranks 2-3 (beta) have the same GPU", "--ntasks-per-node")),
        ({"gpu": "", "device": "cpu"}, ("rank 2 (beta) would train on the CPU", "nvidia-smi")),
        ({"problem": "no such set", "clips": {}, "digest": ""}, ("rank 2 (beta): no such set",)),
    ],
)
def test_a_rank_that_sees_something_else(
    reports: list[Report], change: dict[str, object], words: tuple[str, ...]
) -> None:
    reports[2] = replace(reports[2], **change)
    (message,) = disagreements(reports)
    for word in words:
        assert word in message


def test_every_fault_is_told(reports: list[Report]) -> None:
    reports[1] = replace(reports[1], gpu="gpu-0", run_seen=False)
    reports[3] = replace(reports[3], clock=60.0, versions={"peas": "2.0", "torch": "2.14.1"})
    assert len(disagreements(reports)) == 4


def test_ranks_are_named_shortly() -> None:
    assert ranks([3]) == "rank 3"
    assert ranks([2, 0, 1]) == "ranks 0-2"
    assert ranks([0, 1, 2, 5, 7, 8]) == "ranks 0-2, 5, 7-8"


def test_the_table_has_a_line_a_rank(reports: list[Report]) -> None:
    lines = table([replace(report, run_seen=report.rank != 3) for report in reports]).splitlines()
    assert lines[0].split()[:3] == ["rank", "host", "local"]
    assert [line.split()[:3] for line in lines[1:5]] == [
        ["0", "alpha", "0"],
        ["1", "alpha", "1"],
        ["2", "beta", "0"],
        ["3", "beta", "1"],
    ]
    assert "+0.60 s" in lines[4]
    assert "another" in lines[4]
    assert "1600+400" in lines[1]
    assert lines[-1].split() == ["data", "/data/esc", "ranks", "0-3"]
