"""The artefact store: what goes in comes out whole, or an error names the file; on a folder and on an object store."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

from serving.artifacts import ArtifactMissing, ArtifactStore, ArtifactStoreUnavailable, open_store
from serving.model_directory import ArtifactDamaged, read_manifest, sha256, verify, write_manifest
from tests.support.fakes import REPOSITORY
from tests.support.manifests import manifest
from tests.support.object_store import s3_server

FILES = {"model.onnx": b"o" * 300_000, "head.safetensors": b"head", "adapter/adapter_config.json": b"{}"}


def make_version(directory: Path, files: dict[str, bytes] | None = None) -> Path:
    for name, content in (FILES if files is None else files).items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)
    write_manifest(directory, manifest("v1"))
    return directory


@pytest.fixture
def version(tmp_path: Path) -> Path:
    return make_version(tmp_path / "version")


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with s3_server() as address:
        yield address


@pytest.fixture(params=["folder", "memory", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        return f"{request.getfixturevalue('s3')}/{uuid.uuid4().hex}"
    return str(tmp_path / "store") if request.param == "folder" else f"memory://{uuid.uuid4().hex}"


def overwrite(url: str, path: str, content: bytes) -> None:
    files, root = open_store(url)
    files.pipe_file(f"{root}/{path}", content)


def contents(directory: Path) -> dict[str, bytes]:
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def test_a_manifest_lists_every_file_and_verifies(version: Path) -> None:
    written = read_manifest(version)

    assert set(written.files) == set(FILES)
    assert verify(version, sha256(version / "manifest.json")) == written


def test_a_manifest_is_the_same_bytes_whoever_writes_it(version: Path, tmp_path: Path) -> None:
    again = make_version(tmp_path / "again", dict(reversed(FILES.items())))

    assert (again / "manifest.json").read_bytes() == (version / "manifest.json").read_bytes()


def test_what_is_put_is_what_is_fetched(url: str, version: Path, tmp_path: Path) -> None:
    digest = ArtifactStore(url).put(version)

    fetched = ArtifactStore(url).fetch(digest, tmp_path / "cache")

    assert digest == sha256(version / "manifest.json")
    assert fetched == tmp_path / "cache" / digest
    assert contents(fetched) == contents(version)


def test_a_removed_version_has_no_size_and_is_missing(url: str, version: Path, tmp_path: Path) -> None:
    store = ArtifactStore(url)
    digest, other = store.put(version), "0" * 64
    assert store.size(digest) == sum(path.stat().st_size for path in version.rglob("*") if path.is_file())
    assert store.size(other) is None
    store.remove(other)
    store.remove(digest)
    store.remove(digest)
    assert store.size(digest) is None
    with pytest.raises(ArtifactMissing):
        ArtifactStore(url).fetch(digest, tmp_path / "cache")
    assert store.put(version) == digest
    assert store.size(digest) is not None


def test_put_again_is_a_no_op_and_a_second_fetch_needs_no_store(url: str, version: Path, tmp_path: Path) -> None:
    store = ArtifactStore(url)
    digest = store.put(version)
    assert store.put(version) == digest
    store.fetch(digest, tmp_path / "cache")
    files, root = open_store(url)
    files.rm(f"{root}/{digest}", recursive=True)

    assert contents(store.fetch(digest, tmp_path / "cache")) == contents(version)


def test_an_unknown_digest_is_missing(url: str, tmp_path: Path) -> None:
    store = ArtifactStore(url)
    for digest in ("0" * 64, "../../etc", ""):
        with pytest.raises(ArtifactMissing):
            store.fetch(digest, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("[!.]*"))


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_a_damaged_cache_is_fetched_again(url: str, version: Path, tmp_path: Path, name: str) -> None:
    store = ArtifactStore(url)
    fetched = store.fetch(store.put(version), tmp_path / "cache")
    whole = contents(fetched)
    (fetched / name).write_bytes(b"x" + whole[name][1:])

    assert contents(store.fetch(fetched.name, tmp_path / "cache")) == whole
    (fetched / name).unlink()
    assert contents(store.fetch(fetched.name, tmp_path / "cache")) == whole
    (fetched / "adapter_model.bin").write_bytes(b"not ours")
    assert contents(store.fetch(fetched.name, tmp_path / "cache")) == whole


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_a_damaged_store_is_refused_by_name_and_leaves_nothing(
    url: str, version: Path, tmp_path: Path, name: str
) -> None:
    store = ArtifactStore(url)
    digest = store.put(version)
    overwrite(url, f"{digest}/{name}", b"something else")

    with pytest.raises(ArtifactDamaged, match=name):
        store.fetch(digest, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("[!.]*"))
    assert not list((tmp_path / "cache").glob("*.part"))

    assert store.put(version) == digest  # mends it
    assert contents(store.fetch(digest, tmp_path / "cache")) == contents(version)


def test_a_file_that_the_store_lost_is_named(url: str, version: Path, tmp_path: Path) -> None:
    store = ArtifactStore(url)
    digest = store.put(version)
    files, root = open_store(url)
    files.rm(f"{root}/{digest}/head.safetensors")

    with pytest.raises(ArtifactDamaged, match=r"head\.safetensors: missing from the store"):
        store.fetch(digest, tmp_path / "cache")


def test_half_an_upload_is_not_a_version(url: str, version: Path, tmp_path: Path) -> None:
    digest = sha256(version / "manifest.json")
    store = ArtifactStore(url)
    for name in FILES:
        files, root = open_store(url)
        files.makedirs(f"{root}/{digest}/adapter", exist_ok=True)
        files.put_file(str(version / name), f"{root}/{digest}/{name}")

    with pytest.raises(ArtifactMissing):
        store.fetch(digest, tmp_path / "cache")
    store.put(version)
    assert contents(store.fetch(digest, tmp_path / "cache")) == contents(version)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "head.pkl", "adapter/weights.PT", "x.pickle", "x.joblib"])
def test_pickles_are_refused_when_written_and_when_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(ArtifactDamaged, match=name):
        make_version(tmp_path / "version", {**FILES, name: b"\x80\x04."})

    listed = manifest("v1").model_copy(update={"files": {name: "0" * 64}})
    shutil.rmtree(tmp_path / "version")
    make_version(tmp_path / "version")
    (tmp_path / "version/manifest.json").write_text(listed.model_dump_json(), encoding="utf-8")
    (tmp_path / "version" / name).write_bytes(b"\x80\x04.")
    with pytest.raises(ArtifactDamaged):
        ArtifactStore(str(tmp_path / "store")).put(tmp_path / "version")


def test_an_unlisted_file_a_link_and_a_path_that_leaves_are_refused(version: Path) -> None:
    (version / "extra.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ArtifactDamaged, match=r"extra\.json: not listed"):
        verify(version)
    (version / "extra.json").unlink()

    content = (version / "head.safetensors").read_bytes()
    (version / "head.safetensors").unlink()
    (version.parent / "elsewhere").write_bytes(content)
    (version / "head.safetensors").symlink_to(version.parent / "elsewhere")
    with pytest.raises(ArtifactDamaged, match="link"):
        verify(version)


@pytest.mark.parametrize("name", ["../elsewhere", "/etc/hostname", "a//b", "manifest.json"])
def test_a_manifest_cannot_name_a_path_outside(url: str, tmp_path: Path, name: str) -> None:
    listed = manifest("v1").model_copy(update={"files": {name: "0" * 64}}).model_dump_json().encode()
    (tmp_path / "copy").write_bytes(listed)
    digest = sha256(tmp_path / "copy")
    files, root = open_store(url)
    files.makedirs(f"{root}/{digest}", exist_ok=True)
    overwrite(url, f"{digest}/manifest.json", listed)

    with pytest.raises(ArtifactDamaged, match="not a path within"):
        ArtifactStore(url).fetch(digest, tmp_path / "cache")


def test_an_unknown_format_is_refused(version: Path) -> None:
    later = json.loads((version / "manifest.json").read_text(encoding="utf-8")) | {"format": 2}
    (version / "manifest.json").write_text(json.dumps(later), encoding="utf-8")

    with pytest.raises(ArtifactDamaged, match="format 2 is not known"):
        verify(version)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"format": 1}', None])
def test_a_manifest_that_cannot_be_read_is_damage(version: Path, content: bytes | None) -> None:
    (version / "manifest.json").unlink()
    if content is not None:
        (version / "manifest.json").write_bytes(content)

    with pytest.raises(ArtifactDamaged, match=r"manifest\.json"):
        verify(version)


def test_a_store_that_cannot_be_reached_is_a_connection_error(version: Path, tmp_path: Path) -> None:
    class Away(fsspec.AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
        protocol = "away"

        def get_file(self, *_: object, **__: object) -> None:
            raise LookupError("no route")

        def open(self, *_: object, **__: object) -> None:
            raise LookupError("no route")

    fsspec.register_implementation("away", Away, clobber=True)
    store = ArtifactStore("away://somewhere")

    with pytest.raises(ArtifactStoreUnavailable, match="no route"):
        store.put(version)
    with pytest.raises(ArtifactStoreUnavailable, match="no route"):
        store.fetch("0" * 64, tmp_path / "cache")


def _fetch(url: str, digest: str, cache: Path, start: "multiprocessing.synchronize.Barrier") -> None:
    start.wait(30)
    for _ in range(5):
        verify(ArtifactStore(url).fetch(digest, cache), digest)


def _put(url: str, directory: Path, start: "multiprocessing.synchronize.Barrier") -> None:
    start.wait(30)
    ArtifactStore(url).put(directory)


def all_at_once(target: Callable[..., None], *arguments: object, processes: int = 4) -> list[int | None]:
    spawn = multiprocessing.get_context("spawn")
    start = spawn.Barrier(processes)
    running = [spawn.Process(target=target, args=(*arguments, start)) for _ in range(processes)]
    for process in running:
        process.start()
    for process in running:
        process.join(60)
    return [process.exitcode for process in running]


def test_processes_put_and_fetch_at_once_over_a_damaged_cache(version: Path, tmp_path: Path) -> None:
    url, cache = str(tmp_path / "store"), tmp_path / "cache"
    digest = sha256(version / "manifest.json")
    assert all_at_once(_put, url, version) == [0] * 4
    damaged = ArtifactStore(url).fetch(digest, cache)
    (damaged / "model.onnx").write_bytes(b"damaged")

    assert all_at_once(_fetch, url, digest, cache) == [0] * 4
    assert contents(cache / digest) == contents(version)
    assert contents(tmp_path / "store" / digest) == contents(version)


def test_a_fetch_that_was_killed_is_taken_up_by_the_next(version: Path, tmp_path: Path) -> None:
    url, cache = str(tmp_path / "store"), tmp_path / "cache"
    digest = ArtifactStore(url).put(version)
    script = f"""
import os, signal
from pathlib import Path
from serving import artifacts
def verify(directory, _):
    if directory.name.endswith(".part"):
        os.kill(os.getpid(), signal.SIGKILL)
    raise artifacts.ArtifactDamaged(directory)
artifacts.verify = verify
artifacts.ArtifactStore({url!r}).fetch({digest!r}, Path({str(cache)!r}))
"""
    killed = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, check=False, timeout=60)

    assert killed.returncode == -signal.SIGKILL
    assert (cache / f".{digest}.part").is_dir()
    assert not (cache / digest).exists()
    (cache / f".{digest}.part" / "left over").write_text("x", encoding="utf-8")
    assert contents(ArtifactStore(url).fetch(digest, cache)) == contents(version)
    assert not (cache / f".{digest}.part").exists()


@pytest.mark.parametrize("uploads", [1, len(FILES)])
def test_a_put_that_was_killed_shows_nothing_and_is_taken_up_by_the_next(
    version: Path, tmp_path: Path, uploads: int
) -> None:
    url, digest = str(tmp_path / "store"), sha256(version / "manifest.json")
    script = f"""
import os, signal
from pathlib import Path
from serving import artifacts
replacing, begun = artifacts.replacing, []
def counted(path):
    if len(begun) == {uploads}:
        os.kill(os.getpid(), signal.SIGKILL)
    begun.append(path)
    return replacing(path)
artifacts.replacing = counted
artifacts.ArtifactStore({url!r}).put(Path({str(version)!r}))
"""
    killed = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, check=False, timeout=60)

    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "store" / digest).is_dir()
    with pytest.raises(ArtifactMissing):
        ArtifactStore(url).fetch(digest, tmp_path / "cache")
    ArtifactStore(url).put(version)
    assert contents(ArtifactStore(url).fetch(digest, tmp_path / "cache")) == contents(version)


def test_a_leftover_of_a_writer_that_died_is_not_part_of_the_version(tmp_path: Path) -> None:
    directory = tmp_path / "version"
    directory.mkdir()
    (directory / ".manifest.json").write_text("half", encoding="utf-8")

    make_version(directory)

    assert set(verify(directory).files) == set(FILES)
    assert ".manifest.json" not in os.listdir(directory)
