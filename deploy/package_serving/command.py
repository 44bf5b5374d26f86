"""The `ratchet-serving` command: start BentoML's workers for one project."""

import argparse
import os
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    """Replace this process by `bentoml serve`, with the settings file of `-c`."""
    parser = argparse.ArgumentParser(prog="ratchet-serving", description="Serve the champion of one project.")
    parser.add_argument("-c", "--config", type=Path, default=Path("ratchet.toml"), help="settings file")
    config = parser.parse_args().config.absolute()
    if not config.is_file():
        parser.error(f"there is no settings file {config}: name it with -c")
    sys.path.insert(0, str(HERE))
    from serving.process.start import serve

    serve(config, os.environ)
