"""Config files: read so that an error names the line, and those that come with peas."""

import itertools
import os
import shutil
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from peas.errors import ConfigError, say


def config_root() -> Path | None:
    """Folder of the configs that come with peas: in the package, or in its checkout."""
    package = Path(__file__).parents[1]
    folders = (package / "configs", package.parent / "configs")
    return next((folder for folder in folders if folder.is_dir()), None)


def shipped() -> dict[str, Path]:
    """The configs that come with peas, by name, such as `finetune/esc50_peas_2x2`."""
    root = config_root()
    if root is None:
        return {}
    files = {file.relative_to(root): file for file in sorted(root.rglob("*.yaml"))}
    return {name.with_suffix("").as_posix(): file for name, file in files.items()}


def _name(text: str) -> str:
    return text.removeprefix("./").removeprefix("configs/").removesuffix(".yaml")


def find_config(name: str) -> str:
    """A file by its path or, where there is none, the config of that name that comes with peas.

    Args:
        name: Path, or a name such as `configs/finetune/esc50_peas_2x2.yaml` or
            `finetune/esc50_peas_2x2`.

    Returns:
        Its path; `name` itself where there is neither.
    """
    if Path(name).exists() or Path(name).is_absolute():
        return name
    file = shipped().get(_name(name))
    if file is None:
        return name
    if os.environ.get("LOCAL_RANK", "0") == "0":
        say(f"--config {name}: {file}, which comes with peas", sys.stderr)
    return str(file)


def config_files(words: Sequence[str]) -> list[str]:
    """The files that a command line names with `--config`."""
    files = [word.partition("=")[2] for word in words if word.startswith("--config=")]
    pairs = itertools.pairwise(words)
    return files + [file for option, file in pairs if option in ("--config", "-c")]


def resolved(words: Sequence[str]) -> list[str]:
    """A command line with each `--config NAME` as the path of a file."""
    result: list[str] = []
    for word in words:
        if word.startswith("--config="):
            word = f"--config={find_config(word.partition('=')[2])}"
        elif result and result[-1] in ("--config", "-c"):
            word = find_config(word)
        result.append(word)
    return result


def ls() -> None:
    """List the configs that come with peas.

    Each name may be given to `--config` and to `peas configs copy`.
    """
    for name in shipped():
        say(name)


def copy(name: str, to: str | None = None) -> None:
    """Copy a config that comes with peas, to edit it.

    Args:
        name: As `peas configs ls` lists it.
        to: File or folder to copy to; default: the config's own file name in this folder.
    """
    file = shipped().get(_name(name))
    if file is None:
        near = get_close_matches(_name(name), shipped(), n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(f"{name}: there is no such config; {hint}`peas configs ls` lists them")
    target = Path(to or ".").expanduser()
    if target.is_dir() or (to or "").endswith("/"):
        target /= file.name
    if target.exists():
        raise ConfigError(f"{target} exists: give another TO, nothing is overwritten")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, target)
    say(str(target))


def read_config(file: str | Path) -> dict[str, Any]:
    """Content of a config file.

    Args:
        file: Its path.

    Raises:
        ConfigError: The file cannot be read, is not YAML, or is not a mapping.
    """
    try:
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"--config {file}: not UTF-8 text: {error.reason}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"--config {file}{line}: not YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"--config {file}: not YAML: {' '.join(str(error).split())}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(
            f"--config {file}: it holds {type(content).__name__} instead of keys such as `model`"
        )
    return content
