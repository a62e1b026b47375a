"""The images: what their files promise, and their steps run in a clean root without an engine."""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from dockerfile import FILES, ROOT, CleanRoot, PipSettings, ignored, instructions
from packaging.requirements import Requirement

INSTALL = ROOT / "docker" / "install.sh"
STEP = re.compile(r"/opt/peas/docker/install\.sh (\w+)")
GIGABYTES = 12
"""Free disk that the clean root may need while it is filled."""


def steps(name: str) -> list[str]:
    return [STEP.fullmatch(rest)[1] for word, rest in instructions(FILES[name]) if word == "RUN"]


def pinned(text: str) -> dict[str, str]:
    """Versions by name, of lines `name==version`."""
    lines = [line for line in text.splitlines() if "==" in line and not line.startswith("#")]
    return dict(line.lower().replace("_", "-").split("==") for line in lines)


@pytest.mark.parametrize("name", FILES)
def test_every_command_is_a_step_of_install(name: str) -> None:
    text = INSTALL.read_text()
    assert len(steps(name)) == len(set(steps(name)))
    for step in steps(name):
        assert f"\n{step}() {{\n" in text
    assert steps(name)[-1] == "check"


def test_install_parses_and_refuses_an_unknown_step() -> None:
    assert subprocess.run(["bash", "-n", INSTALL]).returncode == 0
    assert os.access(INSTALL, os.X_OK)
    done = subprocess.run([INSTALL, "nosuch"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "usage: install.sh system" in done.stderr


def test_the_cpu_image_is_the_cuda_image_without_what_a_gpu_needs() -> None:
    cpu, cuda = (instructions(FILES[name]) for name in ("cpu", "cuda"))
    more = [line for line in cuda if line not in cpu]
    assert [line for line in cuda if line not in more] == cpu
    assert {word for word, _ in more} == {"RUN", "ENV"}
    assert ("RUN", "/opt/peas/docker/install.sh gpu") in more
    assert ("ENV", "NVIDIA_VISIBLE_DEVICES=all") in more


@pytest.mark.parametrize("name", FILES)
def test_what_is_copied_is_there(name: str) -> None:
    sources = [
        source
        for word, rest in instructions(FILES[name])
        if word == "COPY"
        for source in rest.split()[:-1]
    ]
    assert {"peas", "configs", "constraints-clap.txt", "pyproject.toml"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists(), source
        assert not ignored(source), source
        # A folder that is kept whole holds no file that is not.
        for file in (ROOT / source).rglob("*.py"):
            assert not ignored(str(file.relative_to(ROOT))), file


@pytest.mark.parametrize(
    "path", [".git/config", ".env", ".netrc", "runs/a/b.ckpt", "peas/__pycache__/cli.pyc", "tests"]
)
def test_nothing_else_reaches_the_build(path: str) -> None:
    assert ignored(path)


@pytest.mark.parametrize("name", FILES)
def test_a_change_of_code_installs_no_package_again(name: str) -> None:
    lines = instructions(FILES[name])
    packages = lines.index(("RUN", "/opt/peas/docker/install.sh packages"))
    before = [rest for word, rest in lines[:packages] if word == "COPY"]
    assert sorted(before) == [
        "docker/install.sh /opt/peas/docker/install.sh",
        "pyproject.toml constraints-clap.txt /opt/peas/",
    ]


@pytest.mark.parametrize("name", FILES)
def test_the_image_runs_as_a_user_without_rights(name: str) -> None:
    lines = instructions(FILES[name])
    (user,) = [rest for word, rest in lines if word == "USER"]
    assert user not in ("root", "0")
    assert lines.index(("USER", user)) < lines.index(("RUN", "/opt/peas/docker/install.sh check"))
    assert not re.search(r"KEY|TOKEN|SECRET|PASS", FILES[name].read_text(), re.IGNORECASE)


def test_every_package_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["clap"]
    pins = pinned((ROOT / "constraints-clap.txt").read_text())
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(pins[requirement.name.lower()]), requirement
    assert '--constraint "$SOURCE/constraints-clap.txt"' in INSTALL.read_text()


def test_make_builds_both_with_the_engine_that_is_there(tmp_path: Path) -> None:
    engine = tmp_path / "engine"
    engine.write_text('#!/bin/sh\necho "$@"\n')
    engine.chmod(0o755)
    command = ["make", "--no-print-directory", "-s", "docker"]
    done = subprocess.run(
        [*command, f"ENGINE={engine}"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [
        f"build --file docker/{name}.Dockerfile --tag peas:{name} ." for name in FILES
    ]
    done = subprocess.run([*command, "ENGINE=nosuch"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert "make docker-check" in done.stderr


@pytest.mark.container
def test_the_steps_run_in_a_clean_root(tmp_path: Path) -> None:
    """The CUDA file, whose steps are those of the CPU file and one more; minutes and gigabytes."""
    if os.geteuid() != 0:
        pytest.skip("chroot needs root")
    if lacking := [tool for tool in ("debootstrap", "unshare") if shutil.which(tool) is None]:
        pytest.skip(f"{', '.join(lacking)} not installed")
    if (free := shutil.disk_usage(tmp_path).free / 2**30) < GIGABYTES:
        pytest.skip(f"{free:.0f} GiB free at {tmp_path}, {GIGABYTES} needed (see --basetemp)")
    (_, image), *lines = instructions(FILES["cuda"])
    root = CleanRoot(tmp_path / "root", image, PipSettings.of_this_machine())
    try:
        # The last command is the check, as the user.
        *_, printed = [root.follow(word, rest) for word, rest in lines if word != "ENTRYPOINT"]
        assert re.search(r"^peas \d", printed, re.MULTILINE)
        assert printed.count("ok       ") >= 8
        assert "MISSING" not in printed
        # Every package is the one that was tested.
        frozen = pinned(root.run("python -m pip freeze --exclude peas").stdout)
        assert len(frozen) > 50
        assert frozen.items() <= pinned((ROOT / "constraints-clap.txt").read_text()).items()
        assert root.run("id -un").stdout == "peas\n"
        assert root.run("touch /opt/venv/x /opt/peas/x").returncode != 0
        assert root.run("peas fit --config /opt/peas/configs/demo.yaml --help").returncode == 0
    finally:
        root.remove()
