"""The directory of a model version: its files, their hashes, and `manifest.json`.

Turns a finished directory into a `ModelManifest` that lists the SHA-256 of every file, and checks a directory against it.
Rounds write manifests; artifacts.py stores the directories; the runtimes verify one before they load it.

`manifest.json` is written last: a directory without it is unfinished. Symbolic links and pickles are refused.
"""

import hashlib
from pathlib import Path, PurePosixPath

from pydantic import ValidationError
from pydantic_core import from_json

from schemas.manifests import MANIFEST_FORMAT, ModelManifest
from serving.atomic_write import atomic_write, sync, sync_all

MANIFEST = "manifest.json"
PICKLES = (".bin", ".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib")


class ArtifactDamaged(ValueError):
    """A file is missing, changed, unlisted or of a forbidden kind, or the manifest cannot be read."""


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(directory: Path) -> ModelManifest:
    """Return the manifest of a directory. Raises ArtifactDamaged if it is absent, unreadable or of an unknown format."""
    try:
        content = from_json((directory / MANIFEST).read_bytes())
        if isinstance(content, dict) and content.get("format") != MANIFEST_FORMAT:
            raise ArtifactDamaged(f"{MANIFEST}: format {content.get('format')!r} is not known to this Ratchet")
        return ModelManifest.model_validate_json((directory / MANIFEST).read_bytes())
    except FileNotFoundError as error:
        raise ArtifactDamaged(f"{MANIFEST}: missing") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise ArtifactDamaged(f"{MANIFEST}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    except ValueError as error:
        raise error if isinstance(error, ArtifactDamaged) else ArtifactDamaged(f"{MANIFEST}: {error}") from error


def write_manifest(directory: Path, manifest_without_files: ModelManifest) -> ModelManifest:
    """Hash every file of the directory, sync them to disk, then write and return the manifest that lists them.

    Raises:
        ArtifactDamaged: a file is a symbolic link or a pickle.

    """
    for left in directory.glob(f".{MANIFEST}*"):  # of a process that died
        left.unlink()
    names = sorted(_names(directory) - {MANIFEST})
    for name in names:
        check_name(name)
        sync(directory / name)
    hashes = {name: sha256(directory / name) for name in names}
    manifest = manifest_without_files.model_copy(update={"files": hashes})
    sync_all(folder for folder in [*directory.rglob("*"), directory] if folder.is_dir())
    atomic_write(directory / MANIFEST, manifest.model_dump_json(indent=2))
    return manifest


def verify(directory: Path, digest: str | None = None) -> ModelManifest:
    """Check every file's hash, and the manifest's own if `digest` is given. Raises ArtifactDamaged naming the file."""
    manifest = read_manifest(directory)
    if digest is not None and sha256(directory / MANIFEST) != digest:
        raise ArtifactDamaged(f"{MANIFEST}: is not the one that {digest} names")
    for name in sorted(_names(directory) - manifest.files.keys() - {MANIFEST}):
        raise ArtifactDamaged(f"{name}: not listed in {MANIFEST}")
    for name, expected in manifest.files.items():
        check_name(name)
        if not (directory / name).is_file():
            raise ArtifactDamaged(f"{name}: missing")
        if sha256(directory / name) != expected:
            raise ArtifactDamaged(f"{name}: changed")
    return manifest


def _names(directory: Path) -> set[str]:
    """Return the relative paths of all files. A symbolic link is refused: it may point outside the directory."""
    paths = [path for path in directory.rglob("*") if path.is_symlink() or not path.is_dir()]
    for path in paths:
        if path.is_symlink():
            raise ArtifactDamaged(f"{path.relative_to(directory)}: a symbolic link is not allowed in a model version")
    return {path.relative_to(directory).as_posix() for path in paths}


def check_name(name: str) -> None:
    """Raise ArtifactDamaged if a file's name leaves the directory or ends like a pickle."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or str(path) != name or name == MANIFEST:
        raise ArtifactDamaged(f"{name}: not a path within a model version")
    if name.lower().endswith(PICKLES):
        raise ArtifactDamaged(f"{name}: a pickle format is not allowed in a model version")
