"""Folders that libraries write to: temporary files, caches and a home, where the machine offers none.

Turns the environment of a container with a read-only root, without HOME or TMPDIR, into one whose libraries write below the
project's state. The command line calls it once, before a library looks; what it starts inherits it.
"""

import os
import tempfile
from collections.abc import MutableMapping
from pathlib import Path

from schemas.settings import Settings

_CACHES = {"MPLCONFIGDIR": "matplotlib", "HF_HOME": "huggingface", "XDG_CACHE_HOME": "cache", "BENTOML_HOME": "bentoml"}


def settle(settings: Settings, environ: MutableMapping[str, str]) -> None:
    """Set what is unset or cannot be used: TMPDIR to a folder that exists, a home, and caches beside the state."""
    state = settings.path("state")
    if not _writable(environ.get("TMPDIR") or tempfile_default()):
        environ["TMPDIR"] = tempfile_default() or str(_made(state / "tmp"))
        tempfile.tempdir = environ["TMPDIR"]
    home = environ.get("HOME") or os.path.expanduser("~")
    if _writable(home):
        return
    if not home.startswith("/"):  # no such user: "~" would become a folder of that name
        environ["HOME"] = str(_made(state / "home"))
    for variable, folder in _CACHES.items():
        if variable == "HF_HOME" and Path(home, ".cache/huggingface/hub").is_dir():
            continue  # models that are there already
        environ.setdefault(variable, str(_made(state / "home" / folder)))


def tempfile_default() -> str | None:
    """The first of the machine's folders for temporary files that can be written; None if there is none."""
    return next((folder for folder in ("/tmp", "/var/tmp", "/usr/tmp") if _writable(folder)), None)  # noqa: S108 - looked at


def _writable(folder: str | None) -> bool:
    return bool(folder) and os.path.isdir(str(folder)) and os.access(str(folder), os.W_OK | os.X_OK)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
