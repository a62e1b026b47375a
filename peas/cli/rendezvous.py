"""How the ranks of a job find one another, with what is said where one does not."""

import contextlib
import os
import socket
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from peas.cli.cluster_report import ranks
from peas.errors import PeasError

if TYPE_CHECKING:
    from torch._C._distributed_c10d import TCPStore


@dataclass(frozen=True)
class Place:
    """Where this process stands in its job."""

    rank: int
    world: int
    local_rank: int
    address: str
    port: int


def place() -> Place:
    """Where Lightning would see this process: the same variables, in the same order.

    Raises:
        PeasError: The variables contradict each other.
    """
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    found: LightningEnvironment | SLURMEnvironment | TorchElasticEnvironment
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if TorchElasticEnvironment.detect():
                found = TorchElasticEnvironment()
            elif SLURMEnvironment.detect():
                found = SLURMEnvironment()
            else:
                found = LightningEnvironment()
            return Place(
                rank=found.global_rank(),
                world=found.world_size(),
                local_rank=found.local_rank(),
                address=found.main_address,
                port=found.main_port,
            )
        except KeyError as error:
            raise PeasError(
                f"this job has no variable {error.args[0]}: start every rank with srun or torchrun"
            ) from error
        except (ValueError, RuntimeError) as error:
            raise PeasError(f"the variables of this job cannot be read: {error}") from error


@contextlib.contextmanager
def joined(here: Place, limit: timedelta) -> Iterator[None]:
    """The group of all ranks, over gloo.

    Raises:
        PeasError: It does not come together, or breaks.
    """
    from torch import distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore

    store = _store(here, limit)
    store.set(f"here/{here.rank}", socket.gethostname())
    try:
        store.wait([f"here/{rank}" for rank in range(here.world)], limit)
    except RuntimeError as error:
        silent = [rank for rank in range(here.world) if not store.check([f"here/{rank}"])]
        raise PeasError(
            f"{ranks(silent)} of {here.world} did not answer within {limit.total_seconds():.0f} s: "
            "are they started, one task a GPU, by srun or torchrun, and what does their output say?"
        ) from error
    try:
        inner = PrefixStore("gloo", store)
        dist.init_process_group(
            "gloo", store=inner, rank=here.rank, world_size=here.world, timeout=limit
        )
        yield
        dist.barrier()
        dist.destroy_process_group()
    except RuntimeError as error:
        cause = str(error).strip().splitlines()[0]
        raise PeasError(
            f"rank {here.rank} on {socket.gethostname()} found the first rank, but not all others, "
            "or one stopped. Name the network between the hosts (`ip addr` lists them): "
            f"GLOO_SOCKET_IFNAME=eth0, and NCCL_SOCKET_IFNAME=eth0 for GPUs. Cause: {cause}"
        ) from error


def _store(here: Place, limit: timedelta) -> "TCPStore":
    """The table through which ranks find each other; the first rank holds it, or torchrun.

    Raises:
        PeasError: It cannot be reached.
    """
    # `torch.distributed` has it too, but exports it to no type checker.
    from torch._C._distributed_c10d import TCPStore

    agents = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    try:
        return TCPStore(
            here.address,
            here.port,
            is_master=here.rank == 0 and not agents,
            timeout=limit,
            wait_for_workers=False,
        )
    except RuntimeError as error:
        cause = str(error).strip().splitlines()[0]
        raise PeasError(
            f"rank {here.rank} on {socket.gethostname()}: the first rank is not to be found at "
            f"{here.address}:{here.port}. Is it started, the name known here (MASTER_ADDR gives "
            f"another), and the port free and not behind a fire wall (MASTER_PORT)? Cause: {cause}"
        ) from error
