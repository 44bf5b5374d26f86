"""Read a folder of `save_to_disk`, or list the data files of a dataset repository cloned from the hub.

All splits are read; to read one, name its file or folder. reading.py calls it, and reads the files that `data_files` returns.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.files.records import BadFile, Table
from pipelines.files.tables import arrow_rows

DATA = (".parquet", ".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".xlsx")
_DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")


def is_saved(folder: Path) -> bool:
    """Return whether `save_to_disk` of Hugging Face datasets wrote the folder."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def read_saved(folder: Path) -> dict[str, Table]:
    """Return split -> rows of a saved dataset; the name is empty if it has no splits. Raises BadFile."""
    from datasets import DatasetDict, load_from_disk

    try:
        loaded = load_from_disk(str(folder.absolute()))
    except Exception as error:  # Arrow and fsspec raise many types for a damaged folder
        raise BadFile(f"not a whole saved dataset: {type(error).__name__}: {error}".partition("\n")[0]) from error
    splits = dict(loaded) if isinstance(loaded, DatasetDict) else {"": loaded}
    return {
        str(name): arrow_rows(split.with_format("arrow")[:], split.features.to_dict()) for name, split in splits.items()
    }


def data_files(folder: Path) -> list[Path]:
    """Return the data files of a cloned dataset, in order: beside README.md, or in the one folder that holds any.

    Raises:
        BadFile: there are none, or they have several formats, or several folders have some.

    """
    candidates = [folder, folder / "data", *sorted(p for p in folder.iterdir() if p.is_dir() and p.name != "data")]
    held = {each: files for each in candidates if each.is_dir() and (files := _data(each))}
    if not held:
        raise BadFile(
            "a folder, but not of a Hugging Face dataset (no dataset_info.json or dataset_dict.json), and without "
            f"data files ({', '.join(DATA)}) in it or in data/"
        )
    if len(held) > 1:
        names = ", ".join(str(each.relative_to(folder)) for each in held)
        raise BadFile(f"more than one folder holds data files ({names}): name the one to read")
    files = next(iter(held.values()))
    kinds = sorted({path.suffix.lower() for path in files})
    if len(kinds) > 1:
        raise BadFile(f"holds {' and '.join(kinds)} files: name the one to read")
    return files


def files_of(folder: Path) -> list[Path]:
    """Return the files that a copy of the folder needs to be readable. Raises BadFile."""
    if is_saved(folder):
        inside = [*folder.glob("*"), *folder.glob("*/*")]
        return sorted(path for path in inside if path.is_file() and path.suffix in (".arrow", ".json"))
    readme = folder / "README.md"
    return [*data_files(folder), *([readme] if readme.is_file() else [])]


def described_features(folder: Path) -> dict[str, Any]:
    """Return column -> feature from a dataset's README.md, in the form of the Parquet schema."""
    import yaml

    readme = folder / "README.md"
    parts = readme.read_text(encoding="utf-8", errors="replace").split("---\n", 2) if readme.is_file() else []
    if len(parts) < 3 or parts[0].strip():
        return {}
    try:
        # BaseLoader keeps scalars as texts: a label "no" is no boolean
        described = yaml.load(parts[1], Loader=yaml.BaseLoader)
    except yaml.YAMLError:
        return {}
    info = described.get("dataset_info") if isinstance(described, dict) else None
    features = info.get("features") if isinstance(info, dict) else None
    named = [each for each in features or () if isinstance(each, dict) and "name" in each]
    return {str(each["name"]): feature for each in named if (feature := _class_label(each))}


def _class_label(described: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the feature of `dtype: {class_label: {names: ...}}` or a list of it; None for other types."""
    for key in ("sequence", "list"):
        if isinstance(inner := described.get(key), dict):
            member = _class_label(inner if "dtype" in inner else {"dtype": inner})
            return {"_type": "List", "feature": member} if member else None
    dtype = described.get("dtype")
    names = dtype.get("class_label", {}).get("names") if isinstance(dtype, dict) else None
    if isinstance(names, dict):
        names = [names[key] for key in sorted(names, key=int)]
    return {"_type": "ClassLabel", "names": [str(name) for name in names]} if isinstance(names, list) else None


def _data(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_file()
        and path.suffix.lower() in DATA
        and path.name not in _DESCRIPTIONS
        and not path.name.startswith(".")
    )
