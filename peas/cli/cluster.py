"""`peas doctor --cluster`: what each rank of a job sees, and whether the ranks agree.

Started by every rank as training would be: `srun peas doctor --cluster ...` or `torchrun
--no-python ... peas doctor --cluster ...`; alone it is one rank. It takes `--data SET ROOT`, or
the very arguments of `peas fit` (`--config`, overlays, overrides), whose data set it opens and
whose run folder it tries. Sounds are not decoded.
"""

import argparse
import contextlib
import hashlib
import os
import secrets
import socket
import time
import warnings
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peas.cli.arguments import Arguments
from peas.cli.cluster_report import Report, disagreements, table
from peas.cli.rendezvous import Place, joined, place
from peas.errors import DataError, PeasError, say

if TYPE_CHECKING:
    from peas.data.module import ClipDataModule

LOOK = 10.0
"""Seconds in which a file must show on other hosts; network file systems remember for a while."""


def parser() -> Arguments:
    """Arguments of the command; it hands others on to the parser of `peas fit`."""
    p = Arguments(prog="peas doctor --cluster", description=__doc__)
    p.add_argument("--data", nargs=2, metavar=("SET", "ROOT"), help="as for `peas data`")
    # Not `--run`, which torchrun would take for the start of one of its own options.
    p.add_argument("--run_dir", help="folder of the run (default: that of the config, or runs)")
    p.add_argument(
        "--timeout",
        type=float,
        default=120.0,
        help="seconds to wait for the other ranks, while they read the data set as well",
    )
    return p


def main(argv: list[str]) -> int:
    """Runs the command on one rank.

    Args:
        argv: The command line after `peas doctor`, without `--cluster`.

    Returns:
        The exit status: 1 on all ranks when they disagree; the first one says why.

    Raises:
        PeasError: A rank does not answer; or, on the first rank, the ranks disagree.
    """
    # Its warnings about a rank that is missing are backtraces; the message below says it once.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    args, rest = parser().parse_known_args(argv)
    here = place()
    with joined(here, timedelta(seconds=args.timeout)):
        reports = _exchange(look(here, args, rest))
    found = disagreements(reports)
    if here.rank:
        return 1 if found else 0
    say(table(reports))
    if found:
        raise PeasError("\n  ".join(["the ranks disagree, or cannot train:", *found]))
    hosts = len({report.host for report in reports})
    say(f"ok: {here.world} rank(s) on {hosts} host(s) agree")
    return 0


def look(here: Place, args: argparse.Namespace, rest: list[str]) -> Report:
    """What this rank sees by itself. A fault is part of it, so that the others hear of it.

    Args:
        here: Its place.
        args: Options of the command.
        rest: Arguments of `peas fit`.
    """
    from peas.callbacks.run_files import versions

    report = Report(
        rank=here.rank,
        local_rank=here.local_rank,
        host=socket.gethostname(),
        device="cpu",
        gpu="",
        address=f"{here.address}:{here.port}",
        versions=versions(),
        run=str(Path(args.run_dir or "runs").expanduser().absolute()),
    )
    try:
        device, gpu = _device(here.local_rank)
        report = replace(report, device=device, gpu=gpu)
        module = None
        if args.data is not None:
            from peas.cli.data.sets import make_set

            module = make_set(args.data[0], os.path.expanduser(args.data[1]))
        elif rest:
            module, folder = _of_config(rest)
            if folder is not None and args.run_dir is None:
                report = replace(report, run=str(Path(folder).absolute()))
        if module is not None:
            clips, digest = counted(module)
            report = replace(report, data=str(module.root), clips=clips, digest=digest)
    # A driver that does not answer is a RuntimeError.
    except (PeasError, OSError, RuntimeError) as error:
        report = replace(report, problem=str(error))
    return report


def _device(local_rank: int) -> tuple[str, str]:
    """Name and identity of the device that Lightning would give to this rank."""
    import torch

    count = torch.cuda.device_count()
    if count == 0:
        return "cpu", ""
    if local_rank >= count:
        raise PeasError(
            f"its local rank is {local_rank}, and it sees {count} GPU: ask for as many GPUs a node "
            "as tasks, and let each task see all of them (--gpus-per-node, not --gpus-per-task)"
        )
    facts = torch.cuda.get_device_properties(local_rank)
    return f"cuda:{local_rank} {facts.name}", str(facts.uuid)


def _of_config(argv: list[str]) -> tuple["ClipDataModule", str | None]:
    """Data set and run folder of a `peas fit` with these arguments; nothing else is built."""
    from peas.cli.main import SETTINGS, PeasCLI

    class Reader(PeasCLI):
        """Stops where the data set is there."""

        def _parse_ckpt_path(self) -> None: ...

        def _set_seed(self) -> None: ...

        def before_instantiate_classes(self) -> None: ...

        def instantiate_classes(self) -> None:
            wanted = type(self.config)(data=self.config.fit.data)
            self.datamodule = self._parser("fit").instantiate_classes(wanted).data

        def _run_subcommand(self, subcommand: str) -> None: ...

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read = Reader(args=["fit", *argv], **SETTINGS)
    return read.datamodule, read.config.fit.trainer.default_root_dir


def counted(module: "ClipDataModule") -> tuple[dict[str, int | None], str]:
    """Clips of each split, and the hash of their names and classes in their order.

    Args:
        module: The data set.

    Raises:
        DataError: It has no training clips.
    """
    from peas.data.module import SPLITS

    counts: dict[str, int | None] = {}
    digest = hashlib.blake2b(digest_size=4)
    for split in SPLITS:
        try:
            clips = module.clips(split)
        except DataError:
            # Not every set has all splits; without training clips there is nothing to do.
            if split == "train":
                raise
            counts[split] = None
            continue
        counts[split] = len(clips)
        for begin in range(0, len(clips), 100_000):
            names = clips.ids[begin : begin + 100_000]
            digest.update("\0".join([split, *names]).encode())
        digest.update(clips.targets.offsets.tobytes() + clips.targets.classes.tobytes())
    return counts, digest.hexdigest()


def _exchange(mine: Report) -> list[Report]:
    """Reports of all ranks, with what only a comparison tells: the run folder and the clocks."""
    from torch import distributed as dist

    world = dist.get_world_size()
    name, folder = f".doctor-{secrets.token_hex(8)}", Path(mine.run)
    made = not os.path.exists(folder)
    if mine.rank == 0:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
        except OSError as error:
            name, problem = "", f"{folder} cannot be written: {error.strerror}"
            mine = replace(mine, problem=mine.problem or problem)
    told: list[Any] = [name]
    dist.broadcast_object_list(told, src=0)
    # Every rank has read its data by now, so that the clocks are read at one moment.
    dist.barrier()
    now = time.time()
    mark = folder / told[0]
    until = time.monotonic() + LOOK
    while told[0] and not os.path.exists(mark) and time.monotonic() < until:
        time.sleep(0.2)
    seen = replace(mine, run_seen=not told[0] or os.path.exists(mark), clock=now)
    gathered: list[Any] = [None] * world
    dist.all_gather_object(gathered, seen)
    if mine.rank == 0 and told[0]:
        with contextlib.suppress(OSError):
            mark.unlink()
            if made:
                folder.rmdir()
    first = gathered[0].clock
    return [replace(report, clock=report.clock - first) for report in gathered]
