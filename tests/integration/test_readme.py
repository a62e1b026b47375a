"""What the README tells a reader to type does what it says."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from peas.__main__ import main
from peas.cli.verbs import VERBS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def readme_commands():
    """Every `peas …` line of the README's shell blocks, continuation lines joined, comments cut."""
    blocks = re.findall(r"^```bash\n(.*?)^```", README, re.M | re.S)
    joined = re.sub(r"\\\n\s*", "", "\n".join(blocks))
    lines = [line for line in joined.splitlines() if line.startswith("peas ")]
    return [line.split("#")[0].strip() for line in lines]


def demo_recipe():
    """The `peas` commands of `make demo`, as make prints them."""
    done = subprocess.run(
        ["make", "--no-print-directory", "-n", "-o", "install", "demo"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [line for line in done.stdout.splitlines() if "/peas " in line]
    return [shlex.split(line)[1:] for line in lines]


def test_every_verb_is_in_the_readme_and_exists():
    named = set()
    for command in readme_commands():
        verb = command.split()[1]
        named.add(verb)
        if "|" in command:
            named.update(word for word in re.findall(r"[a-z]+", command.split("--")[0]))
    assert named - {"peas"} >= {name.split()[0] for name in VERBS} - {"configs", "completion"}


def test_its_python_fine_tunes(tmp_path, monkeypatch):
    """The lines of the README on sounds that are made here, at the smallest size."""
    from peas.data.synthetic import write_sounds

    code, _ = re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)
    monkeypatch.chdir(tmp_path)
    write_sounds(tmp_path / "ESC-50", classes=3, clips_per_class=10, seconds=0.64)
    small = {
        '"SSAST-Base-Patch-400.pth"': "None",
        'SSAST("base")': 'SSAST("mini", stride=(16, 16))',
        "max_epochs=25": "max_epochs=1, accelerator='cpu', limit_train_batches=1",
        "PEAS(n_time=1, n_freq=1)": "PEAS(n_time=1, n_freq=1, max_time=16)",
        "batch_size=10": "batch_size=4, frames=64, num_workers=0, cache_dir=''",
    }
    for given, instead in small.items():
        assert given in code
        code = code.replace(given, instead)
    found = {}
    exec(code, found)
    assert "test/accuracy" in found["trainer"].callback_metrics


def test_its_python_uses_a_run(trained, sounds, tmp_path, monkeypatch):
    _, code = re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "RUN").symlink_to(trained.folder)
    first, second, *_ = sorted((sounds / "audio").iterdir())
    (tmp_path / "dog.wav").symlink_to(first)
    (tmp_path / "rain.flac").symlink_to(second)
    found = {}
    exec(code, found)
    assert found["model"].labels


def test_configs_and_pages_that_the_readme_names_exist():
    names = re.findall(r"(?:configs|docs|peas)/[\w./-]+\.(?:yaml|md|svg|png|py)", README)
    names += [f"configs/{name}" for name in re.findall(r"`((?:pretrain|finetune)/\S+)`", README)]
    assert names
    assert [name for name in names if not (ROOT / name).exists()] == []


@pytest.mark.slow
def test_make_demo_runs_end_to_end(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    recipe = demo_recipe()
    assert [command[0] for command in recipe] == ["fit", "fit", "test", "tag"]
    short = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2"]
    for command in recipe:
        expanded = [
            path
            for word in command
            for path in (map(str, sorted(tmp_path.glob(word))[:2]) if "*" in word else [word])
        ]
        assert main([*expanded, *(short if command[0] == "fit" else [])]) == 0
    shown = capsys.readouterr().out
    assert "test/accuracy" in shown
    assert "%  " in shown
    assert list((tmp_path / "runs/demo/plots").glob("*.png"))
    assert list((tmp_path / "runs/demo/plots").glob("*.pdf"))
    assert list((tmp_path / "runs/demo/pretrain/plots").glob("*.png"))
