"""Folders that a test run makes once, whichever xdist worker needs them first; they are read, or copied, never changed."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from serving.file_lock import locked


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return this run's folder `name`. The first caller fills it by `make`; others wait for it, in any process."""
    base = factory.getbasetemp()
    run = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base  # a worker's own folder lies in the run's
    folder, beside = run / name, run / f"{name}.part"
    with locked(run / f"{name}.lock"):
        if not folder.exists():
            shutil.rmtree(beside, ignore_errors=True)
            make(beside)
            beside.rename(folder)
    return folder
