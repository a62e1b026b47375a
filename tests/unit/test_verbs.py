"""The table of verbs, their command lines and their help; a run that has lost a worker."""

import inspect
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from peas.__main__ import main
from peas.cli import fit
from peas.cli.configs import config_root, find_config, shipped
from peas.cli.parser import arguments, build, keys_of, spell
from peas.cli.verbs import LIGHTNING, VERBS
from peas.data import ESC50
from peas.errors import PeasError, UsageError
from peas.tasks import Classification, Pretraining
from peas.utils.processes import CONTEXT

OWN = [name for name in VERBS if name not in LIGHTNING]


def words(verb: str, *argv: str) -> tuple[list[str], list[str]]:
    function = VERBS[verb].load()
    return spell(argv, arguments(function), keys_of(build(verb, function)))


def test_help_lists_every_verb(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert [name for name in VERBS if f"\n  {name} " in out] == list(VERBS)


def test_help_of_own_verbs_is_quick():
    code = f"""
import contextlib, io, sys
from peas.__main__ import main
for verb in {OWN}:
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as out:
        main([*verb.split(), "--help"])
    assert "options:" in out.getvalue(), verb
    assert out.getvalue().startswith(f"usage: peas {{verb}}"), verb
print(sorted(sys.modules))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for heavy in ("torch", "lightning", "datasets", "matplotlib"):
        assert f"'{heavy}'" not in run.stdout


def test_help_of_fit_is_quick_and_true(capsys):
    code = """
import sys
from peas.__main__ import main
main(["fit", "--help"])
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    with pytest.raises(SystemExit):
        main(["fit", "--help", "all"])
    every = capsys.readouterr().out
    for verb in LIGHTNING:
        assert main([verb, "--help"]) == 0
        page = capsys.readouterr().out
        options = re.findall(r"^  (--[\w.]+) ", page, flags=re.MULTILINE)
        assert ("--new" in options) == (verb == "fit")
        for option in options:
            # Settings of a class are not options of the parser but keys of its config.
            assert option.partition(".init_args.")[0] in every, option
            task, _, setting = option.partition(".init_args.")
            if setting and task == "--model":
                assert any(
                    setting in inspect.signature(cls).parameters
                    for cls in (Classification, Pretraining)
                )
            elif setting:
                assert setting in inspect.signature(ESC50).parameters


@pytest.mark.parametrize("verb", OWN)
def test_every_option_has_help(verb):
    for action in build(verb, VERBS[verb].load())._actions:
        assert action.help, action.dest


@pytest.mark.parametrize(
    ("argv", "near"),
    [
        (["fitt"], "peas fit"),
        (["data", "stat"], "peas data stats"),
        (["tag", "x.wav", "--chekpoint", "x"], "--checkpoint"),
        (["data", "verify", "esc50", "x", "--stric"], "--strict"),
        (["kfold", "--confg", "x"], "--config"),
        (["import", "x", "--pool", "cls"], "--pooling"),
    ],
)
def test_a_slip_names_what_was_meant(argv, near, capsys):
    assert main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert near in line


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["tag", "x.wav"], "--checkpoint"),
        (["tag", "--checkpoint", "x"], "CLIPS"),
        (["tag", "x.wav", "--checkpoint"], "--checkpoint"),
        (["tag", "x.wav", "--checkpoint", "x", "--top", "many"], "--top"),
        (["export", "--checkpoint", "x", "--out", "y", "--layout", "z"], "--layout"),
        (["import", "x", "y"], "'y'"),
        (["configs"], "copy"),
    ],
)
def test_a_wrong_command_line_ends_with_2(argv, named, capsys):
    if argv == ["configs"]:
        assert main(argv) == 0
        assert named in capsys.readouterr().out
        return
    assert main(argv) == 2
    assert named in capsys.readouterr().err


def test_words_of_a_verb():
    assert words("tag", "a.wav", "--json", "b.wav", "--checkpoint=c") == (
        ["--json=true", "--checkpoint=c", '["a.wav", "b.wav"]'],
        [],
    )
    modules = ["--allow_module", "a", "--allow_module", "b", "x.wav", "--checkpoint", "c"]
    assert words("tag", *modules)[0][:2] == ["--allow_module+=a", "--allow_module+=b"]
    assert words("import", "f", "--stride", "10", "8")[0] == ["--stride=[10, 8]", "f"]
    passed = ["--trainer.max_epochs", "3", "--new"]
    own = ["--config", "x.yaml", "-c", "y.yaml", "--dry_run"]
    assert words("kfold", *own[:4], *passed, own[4]) == (
        ["--config+=x.yaml", "--config+=y.yaml", "--dry_run=true"],
        passed,
    )
    assert words("sweep", "--trainer.max_epochs=3", "s.yaml") == (
        ["s.yaml"],
        ["--trainer.max_epochs=3"],
    )


def test_spellings_of_release_0_1():
    with pytest.warns(FutureWarning, match="--per_window"):
        assert words("tag", "x", "--per-window", "--checkpoint", "c")[0][0] == "--per_window=true"
    assert "--maps=x" in words("data targets", "esc50", "r", "--from", "x", "--out", "o")[0]


def test_configs_are_found_by_name(tmp_path, monkeypatch, capsys):
    root = config_root()
    assert root is not None
    assert main(["configs", "ls"]) == 0
    assert capsys.readouterr().out.splitlines() == list(shipped())
    monkeypatch.chdir(tmp_path)
    for name in ("finetune/esc50_peas_2x2", "configs/finetune/esc50_peas_2x2.yaml"):
        assert find_config(name) == str(root / "finetune" / "esc50_peas_2x2.yaml")
    assert find_config("nowhere.yaml") == "nowhere.yaml"
    assert main(["configs", "copy", "demo", "my/"]) == 0
    assert Path("my/demo.yaml").read_bytes() == (root / "demo.yaml").read_bytes()
    assert main(["configs", "copy", "configs/demo.yaml", "my"]) == 1
    assert main(["configs", "copy", "demmo"]) == 1
    assert "demo" in capsys.readouterr().err
    # A file of the user's own comes first.
    Path("demo.yaml").write_text("{}")
    assert find_config("demo.yaml") == "demo.yaml"


def test_fit_takes_a_config_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = fit.FitReader().settings(["--config", "finetune/esc50_peas_2x2"])
    assert config.masking.init_args.n_time == 2


def test_help_of_every_option_of_fit(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["__main__.py"])
    with pytest.raises(SystemExit):
        main(["fit", "--help", "all"])
    out = capsys.readouterr().out
    assert out.startswith("usage: peas fit ")
    assert "peas.tasks.Classification" in out
    assert "registry" not in out.partition("--ckpt_path")[2]


def test_completion():
    pytest.importorskip("shtab")
    code = "from peas.__main__ import main; main(['completion', '--shell', 'bash'])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert len(run.stdout) < 1e6
    for word in ("--ckpt_path", "stats", "--per_window", "fine-tuned"):
        assert word in run.stdout
    subprocess.run(["bash", "-n"], input=run.stdout, text=True, check=True)


def test_completion_without_its_package(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion"]) == 1
    assert "shtab" in capsys.readouterr().err


def test_a_missing_word_is_a_usage_error():
    with pytest.raises(UsageError, match="FILE"):
        words("sweep", "--trainer.max_epochs", "3")


@pytest.mark.parametrize(
    ("number", "memory"), [(signal.SIGKILL, True), (signal.SIGUSR2, False), (None, False)]
)
def test_the_signal_that_ended_a_worker_is_named(monkeypatch, number, memory):
    worker = CONTEXT.Process(target=time.sleep, args=(0 if number is None else 60,), daemon=True)
    worker.start()
    if number is not None:
        os.kill(worker.pid, number)
    worker.join(20)

    def lose(**_):
        raise RuntimeError(f"DataLoader worker (pid(s) {worker.pid}) exited unexpectedly")

    monkeypatch.setattr(fit, "PeasCLI", lose)
    with pytest.raises(PeasError) as caught:
        fit.run(["fit"])
    assert str(worker.pid) in str(caught.value)
    assert (number is None) or number.name in str(caught.value)
    assert ("memory" in str(caught.value)) == memory
    assert "--ckpt_path last" in str(caught.value)
