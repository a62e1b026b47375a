"""Uploading an exported folder to the Hugging Face hub."""

import re
from pathlib import Path

from huggingface_hub import HfApi

from peas import __version__
from peas.errors import PeasError, UsageError

NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
"""OWNER/NAME of a repository; the hub has further rules."""


def check_name(name: str) -> None:
    """Refuses what is no OWNER/NAME.

    Raises:
        UsageError: It is not.
    """
    if not NAME.fullmatch(name):
        raise UsageError(f"`--push` is {name!r}: give OWNER/NAME")


def upload(folder: Path, name: str) -> str:
    """Uploads a folder, and returns its address.

    Args:
        folder: Of `peas export --format hf`.
        name: OWNER/NAME; a repository that is not there yet is made.

    Raises:
        PeasError: There is no network or no token, or the hub refuses.
    """
    api = HfApi(library_name="peas", library_version=__version__)
    try:
        api.create_repo(name, exist_ok=True)
        done = api.upload_folder(
            repo_id=name, folder_path=folder, commit_message=f"peas export {__version__}"
        )
    # Which HTTP library's errors these are depends on the release.
    except Exception as error:
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise PeasError(
            f"{folder}: written, but not uploaded to {name} ({line}): check the network and the "
            f"token (`hf auth login`), then `hf upload {name} {folder}`"
        ) from error
    return str(done)
