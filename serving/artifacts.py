"""Model versions as content-addressed directories.

Turns a finished directory into a digest and a digest into a verified local directory. Rounds put, serving fetches.
It deliberately does not know what the files mean; `manifest.json`, written last, makes a directory true.

A digest is the SHA-256 of manifest.json, which holds the SHA-256 of every other file. Nothing is believed: what is read
from a store or a cache is hashed again.
"""

import contextlib
import hashlib
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

import fsspec
from fsspec.implementations.local import LocalFileSystem
from pydantic import ValidationError
from pydantic_core import from_json

from schemas.manifests import MANIFEST_FORMAT, ModelManifest
from serving.atomic_write import atomic_write, sync, sync_all
from serving.file_lock import locked

MANIFEST = "manifest.json"
PICKLES = (".bin", ".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib")
DIGEST = re.compile(r"[0-9a-f]{64}")


class ArtifactMissing(FileNotFoundError):
    """The store has no such version."""


class ArtifactDamaged(ValueError):
    """A file is missing, changed, unlisted or of a forbidden kind, or the manifest cannot be read."""


class ArtifactStoreUnavailable(ConnectionError):
    """The store cannot be reached or refuses: try again later."""


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(directory: Path) -> ModelManifest:
    """The manifest of a directory. Raises ArtifactDamaged when it is absent, unreadable or of an unknown format."""
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
    """Hash every file of the directory into `files`, and write manifest.json last, once all of them are on disk.

    Raises:
        ArtifactDamaged: a file is of a kind that a model version must not hold.

    """
    for left in directory.glob(f".{MANIFEST}*"):  # of a writer that died
        left.unlink()
    names = sorted(_names(directory) - {MANIFEST})
    for name in names:
        _check_name(name)
        sync(directory / name)
    hashes = {name: sha256(directory / name) for name in names}
    manifest = manifest_without_files.model_copy(update={"files": hashes})
    sync_all(folder for folder in [*directory.rglob("*"), directory] if folder.is_dir())
    atomic_write(directory / MANIFEST, manifest.model_dump_json(indent=2))
    return manifest


def verify(directory: Path, digest: str | None = None) -> ModelManifest:
    """Check a directory's every hash, and its own digest if given. Raises ArtifactDamaged naming the file."""
    manifest = read_manifest(directory)
    if digest is not None and sha256(directory / MANIFEST) != digest:
        raise ArtifactDamaged(f"{MANIFEST}: is not the one that {digest} names")
    for name in sorted(_names(directory) - manifest.files.keys() - {MANIFEST}):
        raise ArtifactDamaged(f"{name}: not listed in {MANIFEST}")
    for name, expected in manifest.files.items():
        _check_name(name)
        if not (directory / name).is_file():
            raise ArtifactDamaged(f"{name}: missing")
        if sha256(directory / name) != expected:
            raise ArtifactDamaged(f"{name}: changed")
    return manifest


def open_store(url: str) -> tuple[Any, str]:
    """Return the file system of a store and its root there. A plain path is taken as it is: it is no URL and no pattern."""
    if "://" in url:
        files, root = fsspec.core.url_to_fs(url)
        return files, str(root)
    return LocalFileSystem(), url


class ArtifactStore:
    """Model versions behind fsspec. `url` is a local folder or any address that fsspec knows, as s3://bucket/prefix."""

    def __init__(self, url: str) -> None:
        self._files, self._root = open_store(url)
        self._local = isinstance(self._files, LocalFileSystem)

    def put(self, directory: Path) -> str:
        """Store a finished directory and return its digest. Again is a no-op, or mends what has been damaged there.

        The manifest goes last, and each file appears whole or not at all, so nobody fetches half a version.

        Raises:
            ArtifactDamaged: `directory` is not what its manifest says.
            ArtifactStoreUnavailable: the store cannot be reached.
            OSError: the local disk refuses.

        """
        manifest = verify(directory)
        digest = sha256(directory / MANIFEST)
        with _driver_errors_named(self._root):
            for name, expected in {**manifest.files, MANIFEST: digest}.items():
                target = f"{self._root}/{digest}/{name}"
                if self._stored(target) != expected:
                    self._upload(directory / name, target)
        return digest

    def fetch(self, digest: str, cache: Path) -> Path:
        """The verified directory `cache/<digest>`; fetched if absent or damaged. Any number of processes may ask.

        Raises:
            ArtifactMissing: the store has no such version.
            ArtifactDamaged: what the store has is not what the digest names; the message names the file.
            ArtifactStoreUnavailable: the store cannot be reached.
            OSError: the local disk refuses.

        """
        if not DIGEST.fullmatch(digest):
            raise ArtifactMissing(f"{digest!r} is not the digest of a model version")
        target = cache / digest
        cache.mkdir(parents=True, exist_ok=True)
        with locked(cache / f".{digest}.lock"):
            if _is_whole(target, digest):
                return target
            beside = cache / f".{digest}.part"
            shutil.rmtree(beside, ignore_errors=True)  # of a process that died
            try:
                self._download(digest, beside)
                verify(beside, digest)
                shutil.rmtree(target, ignore_errors=True)
                beside.rename(target)
                sync(cache)
            finally:
                shutil.rmtree(beside, ignore_errors=True)
        return target

    def check(self, digest: str) -> None:
        """Hash what the store holds of a version, without a copy.

        Raises:
            ArtifactMissing: the store has no such version.
            ArtifactDamaged: a file is missing or changed; the message names it.
            ArtifactStoreUnavailable: the store cannot be reached.

        """
        root = f"{self._root}/{digest}"
        with _driver_errors_named(self._root):
            stored = self._stored(f"{root}/{MANIFEST}")
            if stored is None:
                raise ArtifactMissing(f"the store has no {root}")
            if stored != digest:
                raise ArtifactDamaged(f"{MANIFEST}: changed")
            with self._files.open(f"{root}/{MANIFEST}", "rb") as file:
                files = ModelManifest.model_validate_json(file.read()).files
            for name, expected in files.items():
                found = self._stored(f"{root}/{name}")
                if found != expected:
                    raise ArtifactDamaged(f"{name}: {'missing' if found is None else 'changed'}")

    def place_of(self, name: str) -> str:
        """Where a note lies, for people to read."""
        return f"{self._root}/{name}"

    def read_note(self, name: str) -> bytes | None:
        """Return a small file beside the versions, None if there is none. Raises ArtifactStoreUnavailable, OSError."""
        with _driver_errors_named(self._root):
            try:
                with self._files.open(self.place_of(name), "rb") as file:
                    return bytes(file.read())
            except FileNotFoundError:
                return None

    def write_note(self, name: str, content: bytes) -> None:
        """Replace a small file beside the versions. Raises ArtifactStoreUnavailable, OSError."""
        with _driver_errors_named(self._root):
            if self._local:
                Path(self._root).mkdir(parents=True, exist_ok=True)
                atomic_write(Path(self.place_of(name)), content)
            else:
                self._files.pipe_file(self.place_of(name), content)

    def remove_note(self, name: str) -> None:
        """Remove a small file beside the versions, if it is there. Raises ArtifactStoreUnavailable, OSError."""
        with _driver_errors_named(self._root), contextlib.suppress(FileNotFoundError):
            self._files.rm_file(self.place_of(name))

    def size(self, digest: str) -> int | None:
        """Return how many bytes a stored version takes; None if the store has no such version.

        Raises:
            ArtifactStoreUnavailable: the store cannot be reached.

        """
        with _driver_errors_named(self._root):
            if not self._files.exists(f"{self._root}/{digest}/{MANIFEST}"):
                return None
            return int(self._files.du(f"{self._root}/{digest}"))

    def remove(self, digest: str) -> None:
        """Remove a stored version, its manifest first, so that nobody fetches half of one. Again is a no-op.

        Raises:
            ArtifactStoreUnavailable: the store cannot be reached.
            OSError: the local disk refuses.

        """
        folder = f"{self._root}/{digest}"
        with _driver_errors_named(self._root):
            for path in (f"{folder}/{MANIFEST}", folder):
                if self._files.exists(path):
                    self._files.rm(path, recursive=path == folder)

    def _download(self, digest: str, directory: Path) -> None:
        self._get(digest, MANIFEST, directory)
        if sha256(directory / MANIFEST) != digest:
            raise ArtifactDamaged(f"{MANIFEST}: is not the one that {digest} names")
        for name in read_manifest(directory).files:
            _check_name(name)
            try:
                self._get(digest, name, directory)
            except ArtifactMissing as error:
                raise ArtifactDamaged(f"{name}: missing from the store") from error

    def _get(self, digest: str, name: str, directory: Path) -> None:
        source = f"{self._root}/{digest}/{name}"
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            with _driver_errors_named(self._root):
                self._files.get_file(source, str(directory / name))
        except FileNotFoundError as error:
            raise ArtifactMissing(f"the store has no {source}") from error
        sync(directory / name)

    def _stored(self, target: str) -> str | None:
        """SHA-256 of a stored file, None if there is none."""
        try:
            with self._files.open(target, "rb") as file:
                return _digest(file)
        except FileNotFoundError:
            return None

    def _upload(self, source: Path, target: str) -> None:
        # An object store shows an object once it is whole; a folder needs a second name and a rename.
        if not self._local:
            self._files.put_file(str(source), target)
            return
        place = Path(target)
        place.parent.mkdir(parents=True, exist_ok=True)
        beside = place.with_name(f".{place.name}.{uuid.uuid4().hex}")
        try:
            shutil.copyfile(source, beside)
            sync(beside)
            beside.replace(place)
            sync(place.parent)
        finally:
            beside.unlink(missing_ok=True)


def _names(directory: Path) -> set[str]:
    """Relative paths of everything but folders; a symbolic link is refused, for it may point anywhere."""
    found = [path for path in directory.rglob("*") if path.is_symlink() or not path.is_dir()]
    for path in found:
        if path.is_symlink():
            raise ArtifactDamaged(f"{path.relative_to(directory)}: a symbolic link is not allowed in a model version")
    return {path.relative_to(directory).as_posix() for path in found}


def _check_name(name: str) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or str(path) != name or name == MANIFEST:
        raise ArtifactDamaged(f"{name}: not a path within a model version")
    if name.lower().endswith(PICKLES):
        raise ArtifactDamaged(f"{name}: a pickle format is not allowed in a model version")


def _is_whole(directory: Path, digest: str) -> bool:
    try:
        verify(directory, digest)
    except (OSError, ArtifactDamaged):
        return False
    return True


def _digest(file: IO[bytes]) -> str:
    found = hashlib.sha256()
    while block := file.read(1 << 20):
        found.update(block)
    return found.hexdigest()


@contextmanager
def _driver_errors_named(root: Any) -> Iterator[None]:
    """Each fsspec back end has errors of its own; callers know OSError."""
    try:
        yield
    except (OSError, ArtifactDamaged):
        raise
    except Exception as error:
        raise ArtifactStoreUnavailable(f"{root}: {type(error).__name__}: {error}") from error
