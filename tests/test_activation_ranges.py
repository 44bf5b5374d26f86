"""Int8 answers with fixed activation ranges: the same alone and in every batch, and close to full precision."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from pipelines.compression import export
from pipelines.compression.activation_ranges import fix_ranges
from pipelines.models.encoder import Encoder, TextModel
from tests.support.fakes import toy_rows
from tests.support.shared import made_once
from tests.support.versions import other_base

TEXTS = sorted((text * (1 + n % 3) for n, (text, _) in enumerate(toy_rows(36, seed=5))), key=len)


@pytest.fixture(scope="session", params=["bert", "roberta", "distilbert"])
def graphs(
    request: pytest.FixtureRequest, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[list[int]]]:
    """A folder with model.onnx and int8.onnx of each model family, and the token ids of TEXTS."""

    def make(folder: Path) -> None:
        encoder = other_base(request.param, Encoder(tiny_base, 32), folder / "base")
        weight = np.random.default_rng(0).normal(size=(4, encoder.width))
        export.export(TextModel(encoder.model, encoder.width, weight, np.zeros(4)), encoder, folder)
        rows = [encoder.batch([text])["input_ids"][0].tolist() for text in TEXTS]
        export.quantise(folder / "model.onnx", folder / "int8.onnx", rows[::3])
        (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")

    folder = made_once(tmp_path_factory, f"graphs-{request.param}", make)
    return folder, json.loads((folder / "rows.json").read_text(encoding="utf-8"))


def logits(model: Path, rows: list[list[int]]) -> NDArray[np.float32]:
    ids = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
    mask = np.zeros_like(ids)
    for n, row in enumerate(rows):
        ids[n, : len(row)], mask[n, : len(row)] = row, 1
    found: NDArray[np.float32] = ort.InferenceSession(model).run(
        ["logits"], {"input_ids": ids, "attention_mask": mask}
    )[0]
    return found


def test_a_text_answers_the_same_alone_and_in_any_batch(graphs: tuple[Path, list[list[int]]]) -> None:
    folder, rows = graphs
    together = logits(folder / "int8.onnx", rows)
    alone = np.concatenate([logits(folder / "int8.onnx", [row]) for row in rows])
    np.testing.assert_allclose(together, alone, atol=1e-3)
    exact = logits(folder / "model.onnx", rows)
    assert np.abs(together - exact).max() < 0.1 * np.abs(exact).max()
    assert np.abs(together - exact).max() > 0


def test_no_range_is_measured_while_serving(graphs: tuple[Path, list[list[int]]]) -> None:
    nodes = onnx.load(graphs[0] / "int8.onnx").graph.node
    kinds = [node.op_type for node in nodes]
    assert "DynamicQuantizeLinear" not in kinds
    assert "MatMulInteger" not in kinds
    assert kinds.count("MatMulIntegerToFloat") == 2 * 6 + 1  # two layers of six products, and the head


def test_ranges_need_rows(graphs: tuple[Path, list[list[int]]]) -> None:
    with pytest.raises(ValueError, match="at least one calibration row"):
        fix_ranges(onnx.load(graphs[0] / "int8.onnx"), [])
