"""The store of model versions: directories addressed by the hash of their manifest.

Turns a finished directory into a digest, and a digest into a verified local directory. Rounds put versions, serving fetches
them. A digest is the SHA-256 of manifest.json, which lists the SHA-256 of every other file (model_directory.py). Whatever is
read from a store or a cache is hashed again.
"""

import contextlib
import hashlib
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from schemas.manifests import ModelManifest
from serving.atomic_write import atomic_write, replacing, sync
from serving.file_lock import locked
from serving.model_directory import MANIFEST, ArtifactDamaged, check_name, read_manifest, sha256, verify

DIGEST = re.compile(r"[0-9a-f]{64}")


class ArtifactMissing(FileNotFoundError):
    """The store has no such version."""


OBJECT_STORES = (
    "s3",
    "gs",
    "az",
)  # by obstore, which reads the same AWS_*, GOOGLE_* and AZURE_* variables as the event log


class ArtifactStoreUnavailable(ConnectionError):
    """The store cannot be reached or refuses the request; a later try may succeed."""


def open_store(url: str) -> tuple[Any, str]:
    """Return the file system of a store and its root there. An `url` without "://" is a local path, taken literally."""
    scheme, separator, path = url.partition("://")
    if not separator:
        return LocalFileSystem(), url
    if scheme in OBJECT_STORES:
        from obstore.fsspec import FsspecStore

        return FsspecStore(scheme), path.rstrip("/")
    files, root = fsspec.core.url_to_fs(url)
    return files, str(root)


class ArtifactStore:
    """Model versions behind fsspec. `url` is a local folder or any fsspec address, for example s3://bucket/prefix."""

    def __init__(self, url: str) -> None:
        self._files, self._root = open_store(url)
        self._local = isinstance(self._files, LocalFileSystem)

    def put(self, directory: Path) -> str:
        """Store a finished directory and return its digest. Repeating it only replaces damaged or missing files.

        The manifest is uploaded last and each file appears atomically, so no reader fetches half a version.

        Raises:
            ArtifactDamaged: a file of `directory` differs from its manifest.
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
        """Return the verified directory `cache/<digest>`; fetch it if absent or damaged. Safe in concurrent processes.

        Raises:
            ArtifactMissing: the store has no such version.
            ArtifactDamaged: a stored file is missing or its hash differs; the message names it.
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
            partial = cache / f".{digest}.part"
            shutil.rmtree(partial, ignore_errors=True)  # of a process that died
            try:
                self._download(digest, partial)
                verify(partial, digest)
                shutil.rmtree(target, ignore_errors=True)
                partial.rename(target)
                sync(cache)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        return target

    def check(self, digest: str) -> None:
        """Hash every stored file of a version, without a local copy.

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
                actual = self._stored(f"{root}/{name}")
                if actual != expected:
                    raise ArtifactDamaged(f"{name}: {'missing' if actual is None else 'changed'}")

    def path_of(self, name: str) -> str:
        """Return the path of a note, for messages."""
        return f"{self._root}/{name}"

    def read_note(self, name: str) -> bytes | None:
        """Return a small file beside the versions, None if there is none. Raises ArtifactStoreUnavailable, OSError."""
        with _driver_errors_named(self._root):
            try:
                return bytes(self._files.cat_file(self.path_of(name)))
            except FileNotFoundError:
                return None

    def write_note(self, name: str, content: bytes) -> None:
        """Replace a small file beside the versions. Raises ArtifactStoreUnavailable, OSError."""
        with _driver_errors_named(self._root):
            if self._local:
                Path(self._root).mkdir(parents=True, exist_ok=True)
                atomic_write(Path(self.path_of(name)), content)
            else:
                self._files.pipe_file(self.path_of(name), content)

    def remove_note(self, name: str) -> None:
        """Remove a small file beside the versions, if it is there. Raises ArtifactStoreUnavailable, OSError."""
        with _driver_errors_named(self._root), contextlib.suppress(FileNotFoundError):
            self._files.rm_file(self.path_of(name))

    def size(self, digest: str) -> int | None:
        """Return the size of a stored version in bytes; None if the store has no such version.

        Raises:
            ArtifactStoreUnavailable: the store cannot be reached.

        """
        with _driver_errors_named(self._root):
            if not self._files.exists(f"{self._root}/{digest}/{MANIFEST}"):
                return None
            return int(self._files.du(f"{self._root}/{digest}"))

    def remove(self, digest: str) -> None:
        """Remove a stored version, its manifest first, so that no reader fetches half of one. Repeating it does nothing.

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
            check_name(name)
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
        """Return the SHA-256 of a stored file, None if there is none."""
        if not self._local and not self._files.exists(target):
            return None  # obstore's half-opened file of a missing object complains when it is collected
        try:
            with self._files.open(target, "rb") as file:
                return _digest(file)
        except FileNotFoundError:
            return None

    def _upload(self, source: Path, target: str) -> None:
        # An object store shows an object once it is complete; a local file needs a temporary name and a rename.
        if not self._local:
            self._files.put_file(str(source), target)
            return
        path = Path(target)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            shutil.copyfile(source, temporary)


def _is_whole(directory: Path, digest: str) -> bool:
    try:
        verify(directory, digest)
    except (OSError, ArtifactDamaged):
        return False
    return True


def _digest(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


@contextmanager
def _driver_errors_named(root: Any) -> Iterator[None]:
    """Raise ArtifactStoreUnavailable for the errors that an fsspec back end defines for itself."""
    try:
        yield
    except (OSError, ArtifactDamaged):
        raise
    except Exception as error:
        reason = str(error).partition("\n")[0]  # obstore's message goes on for pages
        raise ArtifactStoreUnavailable(f"{root}: {type(error).__name__}: {reason}") from error
