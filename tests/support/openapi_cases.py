"""Cases that schemathesis makes from the OpenAPI document of a running server.

Runs its command line in a process of its own with a fixed seed. tests/test_openapi.py and `make bench-openapi` call it.
"""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.support.served import Served

CONFIG = Path(__file__).with_name("schemathesis.toml")
ALL = "examples,coverage,fuzzing,stateful"
GENERATED = re.compile(r"(\d+) generated(?:, (\d+) found)?")


@dataclass(frozen=True)
class Cases:
    """How many cases were sent, how many broke a rule of the document, and the report."""

    sent: int
    violations: int
    report: str


def run_cases(
    server: Served, *, examples: int, folder: Path, timeout_s: float, seed: int = 1, phases: str = ALL
) -> Cases:
    """Test every operation with up to `examples` random cases in a phase, besides the documented examples and limits.

    Args:
        server: the running server.
        examples: most random cases of an operation, in each phase.
        folder: where schemathesis may write.
        timeout_s: longest run.
        seed: of the random cases.
        phases: of schemathesis, separated by commas.

    Raises:
        RuntimeError: schemathesis did not finish.

    """
    command = [
        sys.executable,
        "-m",
        "schemathesis.cli",
        "--config-file",
        str(CONFIG),
        "run",
        f"{server.url}/openapi.json",
    ]
    command += [
        "-H",
        f"Authorization: {server.header}",
        "--max-examples",
        str(examples),
        "--seed",
        str(seed),
        "--no-color",
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        cwd=folder,
        encoding="utf-8",
        env={**os.environ, "PYTHONUTF8": "1"},
        timeout=timeout_s,
        check=False,
    )
    counted = GENERATED.search(done.stdout)
    if counted is None or done.returncode not in (0, 1):
        raise RuntimeError(f"schemathesis ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return Cases(int(counted[1]), int(counted[2] or 0) or done.returncode, done.stdout)
