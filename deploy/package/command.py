"""The `ratchet` command of an installed wheel: puts the application's folders on the import path and runs it."""

import sys
from pathlib import Path


def main() -> None:
    """Run the command line; it exits the process itself."""
    # First, so that a `schemas.py` in the working directory or on PYTHONPATH is never taken for ours.
    sys.path.insert(0, str(Path(__file__).parent))
    from services.cli.main import main as run

    run()
