"""Copies of data sets on the Hugging Face hub, brought into its cache."""

from __future__ import annotations

import glob
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peas.errors import DataError

log = logging.getLogger(__name__)

PREFIX = "hf://"
_SECONDS = 10


def hub_folder(name: str, wanted: Callable[[str], bool]) -> Path:
    """Folder of a hub repository's files in the local cache; what lacks is downloaded first.

    Without network, or with `HF_HUB_OFFLINE=1`, the copy in the cache is taken.

    Args:
        name: `hf://owner/name`, with `@revision` behind it for another than the newest.
        wanted: Whether a file, by its path in the repository, is to be fetched.

    Raises:
        DataError: There is no such repository or no wanted file in it, or it cannot be reached and
            is not, or not whole, in the cache.
    """
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    repository, _, revision = name.removeprefix(PREFIX).partition("@")
    if repository.count("/") != 1:
        raise DataError(f"data.init_args.root is {name!r}: a hub copy is {PREFIX}owner/name")
    place: dict[str, Any] = {"repo_id": repository, "repo_type": "dataset"}
    place["revision"] = revision or None
    if constants.HF_HUB_OFFLINE:
        return _kept(name, place, wanted, "HF_HUB_OFFLINE is set")
    try:
        info = HfApi().dataset_info(repository, revision=revision or None, timeout=_SECONDS)
        files = [file.rfilename for file in info.siblings or [] if wanted(file.rfilename)]
    except HfHubHTTPError as error:
        raise DataError(
            f"{name}: the hub refuses it ({_first(error)}); check its name, "
            "and log in with `hf auth login` if it is not public"
        ) from error
    # The classes of connection errors change with the hub client's HTTP library.
    except Exception as error:
        return _kept(name, place, wanted, f"the hub cannot be reached ({error})")
    if not files:
        raise DataError(
            f"{name} has no file that can be used: give a copy with Parquet files, whose names or "
            "folders say which are for training and which for evaluation"
        )
    try:
        # By exact name: unwanted parts may be terabytes.
        return Path(
            snapshot_download(**place, allow_patterns=[glob.escape(file) for file in files])
        )
    except Exception as error:
        raise DataError(
            f"{name}: the download broke off ({_first(error)}); run the same command again, which "
            "goes on where it stopped"
        ) from error


def _kept(name: str, place: dict[str, Any], wanted: Callable[[str], bool], reason: str) -> Path:
    """The copy in the cache, whole as far as the cache knows what belongs to it."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(
            snapshot_download(**place, local_files_only=True, allow_patterns=_known(place, wanted))
        )
    # As above.
    except Exception as error:
        state = "is not whole" if hasattr(error, "snapshot_path") else "is not there"
        raise DataError(
            f"{name}: {reason}, and its copy in the hub's cache {state}; fetch it where there is "
            f"network (`hf download --repo-type dataset {place['repo_id']} --local-dir DIR`) and "
            "give DIR as data.init_args.root"
        ) from None
    log.warning("%s: %s: the copy in the cache is used, %s", name, reason, folder)
    return folder


def _known(place: dict[str, Any], wanted: Callable[[str], bool]) -> list[str] | None:
    """Wanted files that the cache knows to belong to a repository; None = it does not know."""
    try:
        # Newer than the oldest client that `datasets` takes.
        from huggingface_hub import get_cached_repo_tree

        files = get_cached_repo_tree(**place)
    # As above; without a list there is nothing to compare with.
    except Exception:
        return None
    return [glob.escape(file.path) for file in files if wanted(file.path)]


def _first(error: Exception) -> str:
    """First line of what an error says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
