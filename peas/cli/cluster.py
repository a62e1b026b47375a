"""What each rank of a job sees, and whether the ranks agree: `peas doctor --cluster`."""

import contextlib
import hashlib
import os
import secrets
import socket
import time
import warnings
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from peas.errors import DataError, PeasError, say

if TYPE_CHECKING:
    from peas.data.module import ClipDataModule

VISIBLE = 10.0
"""Seconds within which a file must be visible to other hosts; network file systems cache."""
CLOCK = 5.0
"""Seconds by which clocks may differ: with more, ages of files and logs mislead."""


class Rank(NamedTuple):
    """This process in its job."""

    rank: int
    world: int
    local_rank: int
    address: str
    port: int


@dataclass(frozen=True)
class Report:
    """What one rank sees.

    Attributes:
        rank: Of the process.
        local_rank: On its host, which is the index of its GPU.
        host: Name of its machine.
        device: What it would train on.
        gpu: Unique id of its GPU; empty without one.
        versions: Of `peas`, Python and the packages that decide a result.
        data: Folder of the data set; empty without one.
        clips: Number of clips of each split; None = the set has no such split.
        digest: Of the names and classes of all clips, in order.
        run: Folder of the run.
        run_seen: Whether it sees the file that rank 0 wrote there.
        clock: Seconds by which its clock is ahead of rank 0's.
        problem: What failed; empty when nothing did.
    """

    rank: int
    local_rank: int
    host: str
    device: str
    gpu: str
    versions: dict[str, str]
    data: str = ""
    clips: dict[str, int | None] = field(default_factory=dict)
    digest: str = ""
    run: str = ""
    run_seen: bool = True
    clock: float = 0.0
    problem: str = ""


def compare_ranks(
    data: tuple[str, str] | None, run_dir: str | None, timeout: float, fit_args: list[str]
) -> int:
    """Compares all ranks; see `peas.cli.doctor.doctor`."""
    # Its warnings about a missing rank are backtraces; the message below is enough.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    here = this_rank()
    with process_group(here, timedelta(seconds=timeout)):
        reports = _exchange(look(here, data, run_dir, fit_args))
    problems = disagreements(reports)
    if here.rank:
        return 1 if problems else 0
    say(f"rank 0 at {here.address}:{here.port}\n{table(reports)}")
    if problems:
        raise PeasError("\n  ".join(["the ranks disagree, or cannot train:", *problems]))
    hosts = len({report.host for report in reports})
    say(f"ok: {here.world} rank(s) on {hosts} host(s) agree")
    return 0


# What a rank sees


def this_rank() -> Rank:
    """This process as Lightning would see it: the same variables, in the same order.

    Raises:
        PeasError: The variables contradict each other.
    """
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found: Any = LightningEnvironment
            for environment in (TorchElasticEnvironment, SLURMEnvironment):
                if environment.detect():
                    found = environment
                    break
            job = found()
            return Rank(
                job.global_rank(),
                job.world_size(),
                job.local_rank(),
                job.main_address,
                job.main_port,
            )
        except KeyError as error:
            raise PeasError(
                f"this job has no variable {error.args[0]}: start every rank with srun or torchrun"
            ) from error
        except (ValueError, RuntimeError) as error:
            raise PeasError(f"the variables of this job cannot be read: {error}") from error


def look(
    here: Rank, data: tuple[str, str] | None, run_dir: str | None, fit_args: list[str]
) -> Report:
    """What this rank sees by itself. A fault is part of it, so that the others learn of it."""
    from peas.callbacks.run_files import versions

    run = str(Path(run_dir or "runs").expanduser().absolute())
    host = socket.gethostname()
    report = Report(here.rank, here.local_rank, host, "cpu", "", versions(), run=run)
    try:
        device, gpu = _device(here.local_rank)
        report = replace(report, device=device, gpu=gpu)
        module = None
        if data is not None:
            from peas.cli.data.sets import make_set

            module = make_set(data[0], os.path.expanduser(data[1]))
        elif fit_args:
            from peas.cli.fit import FitReader

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                reader = FitReader()
                config = reader.settings(fit_args)
                module = reader.data(config)
            folder = config.trainer.default_root_dir
            if folder is not None and run_dir is None:
                report = replace(report, run=str(Path(folder).absolute()))
        if module is not None:
            clips, digest = counted(module)
            report = replace(report, data=str(module.root), clips=clips, digest=digest)
    # A driver that does not answer is a RuntimeError.
    except (PeasError, OSError, RuntimeError) as error:
        report = replace(report, problem=str(error))
    return report


def _device(local_rank: int) -> tuple[str, str]:
    """Name and id of the device that Lightning would give to this rank."""
    import torch

    count = torch.cuda.device_count()
    if count == 0:
        return "cpu", ""
    if local_rank >= count:
        raise PeasError(
            f"its local rank is {local_rank}, and it sees {count} GPU: ask for as many GPUs a node "
            "as tasks, and let each task see all of them (--gpus-per-node, not --gpus-per-task)"
        )
    properties = torch.cuda.get_device_properties(local_rank)
    return f"cuda:{local_rank} {properties.name}", str(properties.uuid)


def counted(module: "ClipDataModule") -> tuple[dict[str, int | None], str]:
    """Clips of each split, and the hash of their names and classes in order.

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
            # Not every set has all splits.
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


# How ranks find each other


@contextlib.contextmanager
def process_group(here: Rank, limit: timedelta) -> Iterator[None]:
    """The group of all ranks, over gloo.

    Raises:
        PeasError: It does not come together, or breaks.
    """
    from torch import distributed as dist

    host = socket.gethostname()
    # torchrun's agent holds the store, else rank 0.
    agents = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    try:
        store = dist.TCPStore(  # type: ignore[attr-defined]
            here.address,
            here.port,
            is_master=here.rank == 0 and not agents,
            timeout=limit,
            wait_for_workers=False,
        )
    except RuntimeError as error:
        raise PeasError(
            f"rank {here.rank} on {host} cannot reach rank 0 at {here.address}:{here.port}. Is it "
            "started, is the name known here (MASTER_ADDR gives another), and is the port free and "
            f"not behind a firewall (MASTER_PORT)? Cause: {_first_line(error)}"
        ) from error
    store.set(f"here/{here.rank}", host)
    try:
        store.wait([f"here/{rank}" for rank in range(here.world)], limit)
    except RuntimeError as error:
        silent = [rank for rank in range(here.world) if not store.check([f"here/{rank}"])]
        raise PeasError(
            f"{ranks(silent)} of {here.world} did not answer within {limit.total_seconds():.0f} s: "
            "are they started, one task a GPU, by srun or torchrun? See their output"
        ) from error
    try:
        group_store = dist.PrefixStore("gloo", store)  # type: ignore[attr-defined]
        dist.init_process_group(
            "gloo", store=group_store, rank=here.rank, world_size=here.world, timeout=limit
        )
        yield
        dist.barrier()
        dist.destroy_process_group()
    except RuntimeError as error:
        raise PeasError(
            f"rank {here.rank} on {host} reached rank 0, but not all others, or one stopped. Name "
            "the network between the hosts (`ip addr` lists them): GLOO_SOCKET_IFNAME=eth0, and "
            f"NCCL_SOCKET_IFNAME=eth0 for GPUs. Cause: {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _exchange(report: Report) -> list[Report]:
    """Reports of all ranks, with what only a comparison shows: the run folder and the clocks."""
    from torch import distributed as dist

    name, folder = f".doctor-{secrets.token_hex(8)}", Path(report.run)
    new = not os.path.exists(folder)
    if report.rank == 0:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
        except OSError as error:
            name, problem = "", f"{folder} cannot be written: {error.strerror}"
            report = replace(report, problem=report.problem or problem)
    shared: list[Any] = [name]
    dist.broadcast_object_list(shared, src=0)
    # Every rank has read its data by now, so that the clocks are read at one moment.
    dist.barrier()
    now = time.time()
    mark = folder / shared[0]
    until = time.monotonic() + VISIBLE
    while shared[0] and not os.path.exists(mark) and time.monotonic() < until:
        time.sleep(0.2)
    report = replace(report, run_seen=not shared[0] or os.path.exists(mark), clock=now)
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, report)
    if report.rank == 0 and shared[0]:
        with contextlib.suppress(OSError):
            mark.unlink()
            if new:
                folder.rmdir()
    return [replace(other, clock=other.clock - gathered[0].clock) for other in gathered]


# Whether they agree


def ranks(numbers: Sequence[int]) -> str:
    """`rank 3`, or `ranks 0-3, 8` for several."""
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and number == spans[-1][-1] + 1:
            spans[-1].append(number)
        else:
            spans.append([number])
    text = ", ".join(f"{span[0]}-{span[-1]}" if len(span) > 1 else str(span[0]) for span in spans)
    return f"rank{'s' if len(numbers) > 1 else ''} {text}"


def _who(reports: Sequence[Report]) -> str:
    hosts = ", ".join(sorted({report.host for report in reports}))
    return f"{ranks([report.rank for report in reports])} ({hosts})"


def _groups(reports: Sequence[Report], values: Sequence[Hashable]) -> dict[Any, list[Report]]:
    """Reports by their value, in the order of first appearance."""
    groups: dict[Any, list[Report]] = {}
    for report, value in zip(reports, values, strict=True):
        groups.setdefault(value, []).append(report)
    return groups


def _compare(what: str, reports: Sequence[Report], values: Sequence[Hashable], cure: str) -> str:
    """A line where ranks have different values; empty where they agree."""
    groups = _groups(reports, values)
    parts = ", ".join(f"{value} on {_who(members)}" for value, members in groups.items())
    return f"{what} {parts}: {cure}" if len(groups) > 1 else ""


def disagreements(reports: Sequence[Report]) -> list[str]:
    """What is wrong, and what to do about it; empty when the ranks agree.

    Args:
        reports: Of all ranks, rank 0's first.
    """
    copy = "copy the data set again where it is wrong; `peas data verify` names what is missing"
    image = "install the set of constraints.txt everywhere, or use one image"
    lines = [f"{_who([report])}: {report.problem}" for report in reports if report.problem]
    for name in dict.fromkeys(name for report in reports for name in report.versions):
        values = [report.versions.get(name, "missing") for report in reports]
        lines.append(_compare(f"{name} is", reports, values, image))
    good = [report for report in reports if not report.problem]
    counts = [
        _compare(f"clips of {split}:", good, [report.clips.get(split) for report in good], copy)
        for split in dict.fromkeys(split for report in good for split in report.clips)
    ]
    if not any(counts):
        what = "equally many clips with other names or classes:"
        counts = [_compare(what, good, [report.digest for report in good], copy)]
    lines += counts
    lines += [
        f"{_who(members)} have the same GPU, {members[0].device}: start one task a GPU "
        "(--ntasks-per-node as large as --gpus-per-node), each of which sees all of its host"
        for gpu, members in _groups(reports, [report.gpu for report in reports]).items()
        if gpu and len(members) > 1
    ]
    without = [report for report in reports if not report.gpu]
    if without and len(without) < len(reports):
        lines.append(
            f"{_who(without)} would train on the CPU, the others on GPUs: look at `nvidia-smi` and "
            "at the GPUs that the job asked for there"
        )
    for host, members in _groups(reports, [report.host for report in reports]).items():
        ahead = max((report.clock for report in members), key=abs)
        if abs(ahead) > CLOCK:
            lines.append(
                f"the clock of {host} is {abs(ahead):.0f} s {'ahead' if ahead > 0 else 'behind'}: "
                f"set it and that of {reports[0].host} by one time service (NTP, chrony)"
            )
    blind = [report for report in reports if not report.run_seen]
    if blind:
        lines.append(
            f"{_who(blind)}: {blind[0].run} is not the folder that rank 0 ({reports[0].host}) "
            "writes: give `--trainer.default_root_dir` a folder on a file system that all hosts "
            "share, by its full path"
        )
    return [line for line in lines if line]


def table(reports: Sequence[Report]) -> str:
    """A line a rank, then the folders.

    Args:
        reports: Of all ranks.
    """
    from peas.data.checks.report import columns

    rows = [("rank", "host", "local", "device", "clock", "run", "peas", "torch", "clips", "ids")]
    for report in reports:
        counts = [str(count) for count in report.clips.values() if count is not None]
        rows.append(
            (
                str(report.rank),
                report.host,
                str(report.local_rank),
                report.device,
                f"{report.clock:+.2f} s",
                "shared" if report.run_seen else "another",
                report.versions.get("peas", "?"),
                report.versions.get("torch", "?"),
                "+".join(counts) or "-",
                report.digest or "-",
            )
        )
    lines = list(columns(rows))
    for name, values in (
        ("run folder", [report.run for report in reports]),
        ("data", [report.data for report in reports]),
    ):
        for value, members in _groups(reports, values).items():
            if value:
                lines.append(f"{name:<12}{value}   {ranks([report.rank for report in members])}")
    return "\n".join(lines)
