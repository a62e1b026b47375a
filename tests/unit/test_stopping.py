"""Which signal ends a process at once, and which one is only noted."""

import signal
from types import SimpleNamespace

import pytest

from peas.callbacks import stopping as signals
from peas.callbacks.stopping import Stopped, StopRequest

TERM, INT = signal.SIGTERM, signal.SIGINT


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize(
    ("came", "code"),
    [
        # `timeout` sends each signal twice at once.
        ([(0.0, INT), (0.9, INT)], None),
        ([(0.0, INT), (1.1, INT)], 130),
        ([(0.0, TERM), (1.1, INT)], 130),
        # An impatient cluster must not break into the saving.
        ([(0.0, INT), (1.1, TERM)], None),
        ([(0.0, TERM), (5.0, TERM)], None),
    ],
)
def test_a_second_ctrl_c_after_a_second_ends_at_once(
    monkeypatch: pytest.MonkeyPatch,
    at_once: bool,
    came: list[tuple[float, int]],
    code: int | None,
) -> None:
    asked, left = StopRequest(at_once=at_once), []
    for time, number in came:
        monkeypatch.setattr(
            signals, "time", SimpleNamespace(monotonic=lambda time=time: 100.0 + time)
        )
        try:
            asked(number, None)
        except Stopped as stop:
            left.append(stop.code)
        else:
            left.append(None)
        assert asked.number == number
    assert left == [128 + came[0][1] if at_once else None, code]
