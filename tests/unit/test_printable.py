"""Labels and names of files cannot control the terminal that peas prints to."""

import logging
import warnings

import numpy as np
import soundfile

from peas import errors
from peas.__main__ import main
from peas.cli.data.sets import Bar
from peas.data.checks.report import columns
from peas.errors import printable, say

EVIL = "\x1b[2J\x07gone"


def test_what_is_printed_has_no_control_characters(capsys):
    say(f"{EVIL}\nnext\tcell")
    assert capsys.readouterr().out == "\\x1b[2J\\x07gone\nnext\tcell\n"


def test_warnings_and_log_lines_of_a_command_have_none(capsys, monkeypatch):
    handler = logging.StreamHandler()
    monkeypatch.setattr(logging, "lastResort", handler)
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    assert main(["nonsense"]) == 2
    assert main(["data", "nonsense"]) == 2
    record = logging.LogRecord("peas.x", logging.WARNING, "x.py", 1, "class %s", (EVIL,), None)
    assert handler.filter(record)
    assert record.getMessage() == "class \\x1b[2J\\x07gone"
    text = warnings.formatwarning(f"class {EVIL}", UserWarning, "x.py", 1, "")
    assert "\\x1b[2J\\x07gone" in text
    assert "\x1b" not in text
    assert main(["data", EVIL]) == 2
    # Set once, however many verbs a process runs.
    assert printable(text, keep="\n") == text
    assert len(handler.filters) == 1


def test_a_warning_of_peas_shows_no_line_of_code(monkeypatch):
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    assert main(["data", "nonsense"]) == 2
    text = warnings.formatwarning("told:\n  a\n  b", UserWarning, errors.__file__, 1)
    assert text == "warning: told:\n  a\n  b\n"
    # Of others the place is worth something.
    assert soundfile.__file__ in warnings.formatwarning("t", UserWarning, soundfile.__file__, 1)


def test_the_statistics_of_a_folder_with_such_a_name(capsys, tmp_path):
    root = tmp_path / EVIL
    for label in ("a", EVIL):
        (root / label).mkdir(parents=True)
        for number in range(4):
            noise = np.random.default_rng(number).uniform(-0.5, 0.5, 8_000)
            soundfile.write(root / label / f"{number}.wav", noise, 16_000)
    argv = ["data", "stats", "folder", str(root), "--workers", "0", "--frames", "32"]
    assert main(argv) == 0
    done = capsys.readouterr()
    assert "\\x1b[2J\\x07gone" in done.out
    assert "\x1b" not in done.out + done.err
    assert "\x07" not in done.out + done.err


def test_cells_of_a_table_stay_on_their_line():
    lines = list(columns([("part", "clips"), ("a\nb\x1b[H", "3")]))
    assert len("".join(lines).splitlines()) == 1 or len(lines) == 2
    assert lines[1].split() == ["a\\nb\\x1b[H", "3"]


def test_words_of_a_server_are_not_markup(capsys):
    with Bar() as bar:
        bar.of("set")(f"trying again ([/x] {EVIL})", 0, None)
    assert "[/x] \\x1b[2J\\x07gone" in capsys.readouterr().out
