"""A config file, read so that an error names the file and the line."""

from pathlib import Path
from typing import Any

import yaml

from peas.errors import ConfigError


def read_config(file: str | Path) -> dict[str, Any]:
    """What a config file holds.

    Args:
        file: Its path.

    Raises:
        ConfigError: The file cannot be read, is no YAML, or holds something else than keys.
    """
    try:
        found = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"--config {file}: not a text in UTF-8: {error.reason}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"--config {file}{where}: not YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"--config {file}: not YAML: {' '.join(str(error).split())}") from error
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ConfigError(
            f"--config {file}: it holds {type(found).__name__} where keys such as `model` belong"
        )
    return found
