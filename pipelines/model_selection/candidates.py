"""Candidate base models: the project's own, those on this machine, and well-known public ones.

Turns settings and folders into `BaseFacts`, each base once. verdicts.py says which of them fit. Nothing is downloaded.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from pipelines.models.base_facts import BadBase, BaseFacts, facts_of
from pipelines.models.base_files import cached_base, hub_cache, installed_base
from pipelines.models.known_bases import known_bases
from schemas.setting_groups import ModelSettings
from schemas.targets import Task


def candidate_bases(model: ModelSettings, folders: Sequence[Path] = ()) -> list[BaseFacts]:
    """Return the candidates: the project's own base, those of `folders` and of the hub's cache, then the well-known ones.

    Args:
        model: the project's settings; only bases of its task's kind, but for those that `folders` name.
        folders: folders of one base model each, or of several in subfolders.

    Raises:
        BadBase: a folder holds no base model, or a damaged one.

    """
    bases = {facts.name: facts for facts in _current(model)}
    for folder in folders:
        bases |= {facts.name: facts for facts in _in_folder(folder)}
    known = {facts.name: facts for facts in known_bases(model.task)}
    for name, path in _cached():
        with_files = replace(known[name], path=path) if name in known else facts_of(path, name)
        if with_files.refusal(model.task) is None:
            bases.setdefault(name, with_files)
    taken = {name.rsplit("/", 1)[-1].lower() for name in bases}
    return [*bases.values(), *(facts for name, facts in known.items() if name.rsplit("/", 1)[-1].lower() not in taken)]


def _current(model: ModelSettings) -> Iterator[BaseFacts]:
    """Yield the base that the project uses now."""
    if model.base_model is None:
        if path := installed_base(model.task):
            yield replace(_default(model.task), path=path)
        return
    path = Path(model.base_model)
    if path.exists():
        yield facts_of(path)
    elif cached := cached_base(model.base_model):
        yield facts_of(cached, model.base_model)


def _default(task: Task) -> BaseFacts:
    """Return the facts of the installed default model, under its short name."""
    short = "SmolLM2-135M-Instruct" if task == "generation" else "all-MiniLM-L6-v2"
    facts = next(facts for facts in known_bases(task) if facts.name.endswith(f"/{short}"))
    return replace(facts, name=short)


def _in_folder(folder: Path) -> list[BaseFacts]:
    """Return the base model in a folder, or those in its subfolders. Raises BadBase."""
    if folder.is_file() or (folder / "config.json").is_file():
        return [facts_of(folder)]
    inside = [facts_of(path.parent) for path in sorted(folder.glob("*/config.json"))]
    if not inside:
        raise BadBase(f"{folder}: neither it nor a subfolder holds a config.json: name the folder of a base model")
    return inside


def _cached() -> Iterator[tuple[str, Path]]:
    """Yield name and snapshot of each model in Hugging Face's cache that has its weights."""
    for folder in sorted(hub_cache().glob("models--*")):
        name = folder.name.removeprefix("models--").replace("--", "/")
        snapshot = cached_base(name)
        if snapshot and any(snapshot.glob("*.safetensors")):
            yield name, snapshot
