"""Writable folders for libraries: temporary files, caches and a home, where the machine offers none.

Turns the environment of a container with a read-only root, without HOME or TMPDIR, into one whose libraries write below the
project's state/. The command line calls it before it imports such libraries; child processes inherit the environment.
"""

import os
import tempfile
from collections.abc import MutableMapping
from pathlib import Path

from schemas.settings import Settings

_CACHES = {"MPLCONFIGDIR": "matplotlib", "HF_HOME": "huggingface", "XDG_CACHE_HOME": "cache", "BENTOML_HOME": "bentoml"}


def settle(settings: Settings, environ: MutableMapping[str, str]) -> None:
    """Set TMPDIR, HOME and the cache folders in `environ` to writable folders where they are unset or unusable."""
    state = settings.path("state")
    if not _writable(environ.get("TMPDIR") or tempfile_default()):
        environ["TMPDIR"] = tempfile_default() or str(_made(state / "tmp"))
        tempfile.tempdir = environ["TMPDIR"]
    home = environ.get("HOME") or os.path.expanduser("~")
    if _writable(home):
        return
    if not home.startswith("/"):  # the user has no home: libraries would make a folder called "~"
        environ["HOME"] = str(_made(state / "home"))
    for variable, folder in _CACHES.items():
        if variable == "HF_HOME" and Path(home, ".cache/huggingface/hub").is_dir():
            continue  # keep using models downloaded before
        environ.setdefault(variable, str(_made(state / "home" / folder)))


def tempfile_default() -> str | None:
    """Return the machine's first writable folder for temporary files, or None."""
    return next((folder for folder in ("/tmp", "/var/tmp", "/usr/tmp") if _writable(folder)), None)  # noqa: S108 - looked at


def _writable(folder: str | None) -> bool:
    return bool(folder) and os.path.isdir(str(folder)) and os.access(str(folder), os.W_OK | os.X_OK)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
