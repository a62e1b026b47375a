"""`peas doctor`: versions, devices, decoders, folders, and what is missing.

`peas doctor --cluster`, started by every rank of a job, compares what the ranks see instead.
"""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from peas.cli.arguments import Arguments
from peas.errors import PeasError, say


def _versions() -> str:
    from peas.callbacks.run_files import versions

    found = versions()
    missing = [name for name, version in found.items() if version == "not installed"]
    if missing:
        raise PeasError(f"{', '.join(missing)} not installed: run `make install`")
    return ", ".join(f"{name} {version}" for name, version in found.items())


def _python() -> str:
    if not (3, 11) <= sys.version_info[:2] < (3, 13):
        raise PeasError(f"{sys.version.split()[0]}: peas needs 3.11 or 3.12")
    return sys.version.split()[0]


def _torchaudio() -> str:
    try:
        import torch
        from torchaudio.functional import resample

        resample(torch.zeros(100), 8_000, 16_000)
    # A wheel of another build fails with whatever its loader raises.
    except Exception as error:
        raise PeasError(
            f"cannot be imported ({error}): its wheel needs the CUDA build of torch, also without "
            "a GPU. Install the set in constraints.txt"
        ) from error
    return "imports, resamples"


def _devices() -> str:
    import torch

    threads = f"{torch.get_num_threads()} CPU threads"
    if not torch.cuda.is_available():
        return f"{threads}, no CUDA GPU"
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    half = "with bf16" if torch.cuda.is_bf16_supported() else "without bf16"
    return f"{threads}, {len(names)} GPU: {', '.join(names)} ({half})"


def _decoders() -> str:
    import soundfile

    wanted = ("WAV", "FLAC", "OGG", "MP3")
    have = soundfile.available_formats()
    lacking = [name for name in wanted if name not in have]
    if lacking:
        raise PeasError(f"libsndfile lacks {', '.join(lacking)}: reinstall soundfile's wheel")
    opus = "opus" if "OPUS" in soundfile.available_subtypes("OGG") else "no opus"
    ffmpeg = "ffmpeg found" if shutil.which("ffmpeg") else "no ffmpeg (m4a and webm need it)"
    return f"wav, flac, ogg, {opus}, mp3 by {soundfile.__libsndfile_version__}; {ffmpeg}"


def _cache() -> str:
    from peas.data.cache import default_folder

    folder = default_folder()
    try:
        folder = folder.expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    # Without a home `expanduser` raises a RuntimeError.
    except (OSError, RuntimeError) as error:
        raise PeasError(
            f"{folder} cannot be written ({error}): every epoch will resample. Set PEAS_CACHE"
        ) from error
    return f"{folder}, {shutil.disk_usage(folder).free / 2**30:.0f} GiB free"


def _run_folder() -> str:
    here = Path.cwd()
    if not os.access(here, os.W_OK):
        raise PeasError(f"{here} cannot be written: give `--trainer.default_root_dir`")
    return f"{here / 'runs'} (unless `--trainer.default_root_dir` says otherwise)"


def _wandb() -> str:
    mode = os.environ.get("WANDB_MODE", "offline unless a config or WANDB_MODE asks")
    return f"{mode}; never prompts"


CHECKS: dict[str, Callable[[], str]] = {
    "python": _python,
    "versions": _versions,
    "torchaudio": _torchaudio,
    "devices": _devices,
    "decoders": _decoders,
    "cache": _cache,
    "runs": _run_folder,
    "wandb": _wandb,
}


def main(argv: list[str]) -> int:
    """Prints a line a check; exits with 1 when something is missing.

    Args:
        argv: The command line after `peas doctor`.

    Raises:
        PeasError: Something is missing.
    """
    if "--cluster" in argv:
        from peas.cli import cluster

        return cluster.main([word for word in argv if word != "--cluster"])
    p = Arguments(prog="peas doctor", description=__doc__)
    p.add_argument(
        "--cluster", action="store_true", help="compare all ranks; see `peas doctor --cluster -h`"
    )
    p.parse_args(argv)
    missing = []
    for name, check in CHECKS.items():
        try:
            say(f"ok       {name:<11} {check()}")
        except PeasError as error:
            missing.append(name)
            say(f"MISSING  {name:<11} {error}")
    if missing:
        raise PeasError(f"{', '.join(missing)}: see above")
    return 0
