"""`bentoml build` makes a Bento that holds serving and schemas alone, and asks for no torch."""

import os
import subprocess
import sys
from pathlib import Path

import yaml

from tests.support.fakes import REPOSITORY


def test_a_bento_holds_serving_and_schemas_alone(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bentoml", "build", "-f", "deploy/bentofile.yaml", "--output", "tag", "."]
    environment = {**os.environ, "BENTOML_HOME": str(tmp_path), "BENTOML_DO_NOT_TRACK": "true"}
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    [manifest] = tmp_path.glob("bentos/ratchet/*/bento.yaml")
    folders = {path.name for path in (manifest.parent / "src").iterdir() if path.is_dir()}
    assert folders == {"serving", "schemas"}
    assert yaml.safe_load(manifest.read_text(encoding="utf-8"))["service"] == "serving.service:RatchetService"
    assert "torch" not in (manifest.parent / "env/python/requirements.txt").read_text(encoding="utf-8")
