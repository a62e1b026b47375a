"""Fixtures of all tests. Each starts from the same state, so that their order does not matter."""

import contextlib
import logging
import os
import random
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

# Small tensors only: more threads would wait for each other. Read when torch is imported, here and
# in the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pytest
import torch

torch.set_num_threads(1)

# Not SIGCHLD: torch sets its handler once in a process, and would miss workers that die.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def _seed() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> Iterator[None]:
    """Shared fixtures start from the same random numbers, whichever test asks for them first."""
    if fixturedef.scope != "function":
        _seed()
    return (yield)


@contextlib.contextmanager
def _loggers() -> Iterator[None]:
    names = [name for name, log in logging.root.manager.loggerDict.items() if hasattr(log, "level")]
    loggers = [logging.getLogger(), *map(logging.getLogger, names)]
    state = [
        (log, log.level, log.propagate, log.disabled, log.handlers[:], log.filters[:])
        for log in loggers
    ]
    last = logging.lastResort.filters[:] if logging.lastResort else []
    try:
        yield
    finally:
        for log, level, propagate, disabled, handlers, filters in state:
            log.setLevel(level)
            log.propagate, log.disabled = propagate, disabled
            log.handlers[:], log.filters[:] = handlers, filters
        if logging.lastResort:
            logging.lastResort.filters[:] = last
        logging.disable(logging.NOTSET)


@contextlib.contextmanager
def _torch() -> Iterator[None]:
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    dtype, precision = torch.get_default_dtype(), torch.get_float32_matmul_precision()
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn
        torch.set_default_dtype(dtype)
        torch.set_float32_matmul_precision(precision)
        torch.set_num_threads(1)
        torch.set_grad_enabled(True)


@contextlib.contextmanager
def _process() -> Iterator[None]:
    """Environment, working folder, import path, arguments, signal handlers, format of warnings."""
    env, folder = dict(os.environ), Path.cwd()
    path, argv, form = sys.path[:], sys.argv[:], warnings.formatwarning
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        if os.environ.get("WANDB_SERVICE") != env.get("WANDB_SERVICE") and "wandb" in sys.modules:
            # Its service would outlive the test, in a folder that is gone.
            with contextlib.suppress(Exception):
                sys.modules["wandb"].teardown()
        # Only what changed: a thread of a library may read the environment, and the C library is
        # not safe against that. PYTEST_CURRENT_TEST is pytest's own.
        for name in {*os.environ, *env} - {"PYTEST_CURRENT_TEST"}:
            if name not in env:
                del os.environ[name]
            elif os.environ.get(name) != env[name]:
                os.environ[name] = env[name]
        os.chdir(folder)
        sys.path[:], sys.argv[:] = path, argv
        warnings.formatwarning = form
        for number, handler in handlers.items():
            if handler is not None:
                signal.signal(number, handler)
        if "lightning_utilities.core.rank_zero" in sys.modules:
            sys.modules["lightning_utilities.core.rank_zero"].rank_zero_only.rank = 0


@contextlib.contextmanager
def _matplotlib() -> Iterator[None]:
    if "matplotlib" not in sys.modules:
        yield
        return
    with sys.modules["matplotlib"].rc_context():
        yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture(autouse=True)
def _isolated() -> Iterator[None]:
    """Restores the state of the process after each test, and seeds each test."""
    with ExitStack() as stack:
        for state in (_process, _loggers, _torch, _matplotlib):
            stack.enter_context(state())
        for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
            # For `caplog`: Lightning's loggers do not propagate when they are imported before any
            # handler exists.
            logging.getLogger(name).propagate = True
        for name in ("WANDB_MODE", "PEAS_RUN_DIR", "PL_GLOBAL_SEED"):
            os.environ.pop(name, None)
        _seed()
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of reference numbers and real recordings that the project itself does not ship."""
    root = Path(__file__).parents[1]
    folder = Path(os.environ.get("PEAS_SHARED", root.parent / "shared"))
    if folder.is_dir():
        return folder
    reason = f"reference data not found at {folder} (set PEAS_SHARED to its folder)"
    if os.environ.get("PEAS_REQUIRE_SHARED") == "1":
        pytest.fail(reason)
    pytest.skip(reason)
