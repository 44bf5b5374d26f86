"""Model versions as content-addressed directories.

Turns a finished directory into a digest and a digest into a verified local directory. Rounds put, serving fetches.
It deliberately does not know what the files mean; `manifest.json`, written last, makes a directory true.

A digest is the SHA-256 of manifest.json, which holds the SHA-256 of every other file.
"""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

import fsspec
from pydantic import ValidationError

from schemas.artifacts import ModelManifest

MANIFEST = "manifest.json"
PICKLES = (".bin", ".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib")


class ArtifactMissing(FileNotFoundError):
    """The store has no such version."""


class ArtifactDamaged(ValueError):
    """A file is missing, changed or of a forbidden kind."""


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(directory: Path) -> ModelManifest:
    """The manifest of a directory. Raises ArtifactDamaged when it is absent or of an unknown format."""
    try:
        return ModelManifest.model_validate_json((directory / MANIFEST).read_bytes())
    except (OSError, ValidationError) as error:
        raise ArtifactDamaged(f"{directory.name}/{MANIFEST}: {error}") from error


def write_manifest(directory: Path, manifest: ModelManifest) -> ModelManifest:
    """Hash every file of the directory into `manifest.files` and write manifest.json last."""
    paths = sorted(p for p in directory.rglob("*") if p.is_file() and p.name != MANIFEST)
    complete = manifest.model_copy(update={"files": {str(p.relative_to(directory)): sha256(p) for p in paths}})
    beside = directory / f".{MANIFEST}"
    with beside.open("w") as file:
        file.write(complete.model_dump_json(indent=2))
        file.flush()
        os.fsync(file.fileno())
    beside.rename(directory / MANIFEST)
    return complete


def verify(directory: Path, digest: str | None = None) -> ModelManifest:
    """Check every hash of a directory, and its own digest if given. Raises ArtifactDamaged naming the file."""
    if digest and (not (directory / MANIFEST).is_file() or sha256(directory / MANIFEST) != digest):
        raise ArtifactDamaged(f"{MANIFEST} is not that of {digest}")
    manifest = read_manifest(directory)
    for name, expected in manifest.files.items():
        path = directory / name
        if ".." in Path(name).parts or Path(name).is_absolute() or name.endswith(PICKLES):
            raise ArtifactDamaged(f"{name}: not allowed in a model version")
        if not path.is_file() or sha256(path) != expected:
            raise ArtifactDamaged(f"{name}: missing or changed")
    return manifest


class ArtifactStore:
    """Model versions behind fsspec: a local folder or any address that it knows."""

    def __init__(self, url: str) -> None:
        self._files, self._root = fsspec.core.url_to_fs(url)

    def put(self, directory: Path) -> str:
        """Store a finished directory and return its digest. Again is a no-op. Raises ArtifactDamaged."""
        manifest = verify(directory)
        digest = sha256(directory / MANIFEST)
        target = f"{self._root}/{digest}"
        if not self._files.exists(f"{target}/{MANIFEST}"):
            for name in [*manifest.files, MANIFEST]:
                self._files.makedirs(f"{target}/{name}".rpartition("/")[0], exist_ok=True)
                self._files.put_file(str(directory / name), f"{target}/{name}")
        return digest

    def fetch(self, digest: str, cache: Path) -> Path:
        """The local, verified directory `cache/<digest>`; fetched if absent or damaged.

        Raises:
            ArtifactMissing: the store has no such version.
            ArtifactDamaged: what the store has is not what the digest names.

        """
        target = cache / digest
        if target.is_dir():
            try:
                verify(target, digest)
            except ArtifactDamaged:
                shutil.rmtree(target, ignore_errors=True)
            else:
                return target
        cache.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=".fetch-", dir=cache))
        try:
            self._download(digest, beside)
            verify(beside, digest)
            if not target.is_dir():
                beside.rename(target)
        except OSError:
            # Another process may have renamed its own copy there first; that one is as good.
            if not target.is_dir():
                raise
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        return target

    def _download(self, digest: str, directory: Path) -> None:
        try:
            self._files.get_file(f"{self._root}/{digest}/{MANIFEST}", str(directory / MANIFEST))
        except FileNotFoundError as error:
            raise ArtifactMissing(f"no model version {digest} in {self._root}") from error
        for name in read_manifest(directory).files:
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            try:
                self._files.get_file(f"{self._root}/{digest}/{name}", str(directory / name))
            except FileNotFoundError as error:
                raise ArtifactDamaged(f"{name}: missing from the store") from error
