"""Export of TF-IDF: the files that serving loads, an ONNX graph and the vocabulary.

The graph takes `ids` (int64) and `counts` (float32), both [batch, length], of a text's different n-grams, and returns `logits`
[batch, k], like an encoder's. It gathers the weights of these n-grams alone, so its cost does not grow with the vocabulary.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pipelines.models.tfidf import TfidfModel

OPSET, IR_VERSION = 18, 10
# Operators in order: name, inputs, output, attributes. `w` and `c` stand for n-grams of words and of characters.
_NODES: tuple[tuple[str, list[str], str, dict[str, int]], ...] = (
    ("Max", ["counts", "one"], "at_least_one", {}),
    ("Log", ["at_least_one"], "logs", {}),
    ("Add", ["logs", "one"], "damped", {}),
    ("Min", ["counts", "one"], "present", {}),
    ("Mul", ["damped", "present"], "frequencies", {}),  # 1 + log(count), 0 for padding
    ("Gather", ["idf", "ids"], "own_idf", {}),
    ("Mul", ["frequencies", "own_idf"], "values", {}),
    ("Mul", ["values", "values"], "squares", {}),
    ("Gather", ["of_characters", "ids"], "is_c", {}),
    ("Sub", ["one", "is_c"], "is_w", {}),
    ("Mul", ["squares", "is_c"], "squares_c", {}),
    ("Mul", ["squares", "is_w"], "squares_w", {}),
    ("ReduceSum", ["squares_c", "last"], "total_c", {"keepdims": 1}),
    ("ReduceSum", ["squares_w", "last"], "total_w", {"keepdims": 1}),
    ("Mul", ["total_c", "is_c"], "own_c", {}),
    ("Mul", ["total_w", "is_w"], "own_w", {}),
    ("Add", ["own_c", "own_w"], "own_total", {}),
    ("Sqrt", ["own_total"], "length", {}),
    ("Max", ["length", "least"], "safe_length", {}),
    ("Div", ["values", "safe_length"], "features", {}),
    ("Unsqueeze", ["features", "middle"], "row", {}),
    ("Gather", ["weight", "ids"], "own_weight", {}),
    ("MatMul", ["row", "own_weight"], "product", {}),
    ("Squeeze", ["product", "middle"], "sums", {}),
    ("Add", ["sums", "bias"], "logits", {}),
)


def export_tfidf(model: TfidfModel, directory: Path) -> None:
    """Write model.onnx and vocabulary.json."""
    shape = ["batch", "length"]
    graph = helper.make_graph(
        [helper.make_node(kind, inputs, [output], **more) for kind, inputs, output, more in _NODES],
        "tfidf",
        [
            helper.make_tensor_value_info("ids", TensorProto.INT64, shape),
            helper.make_tensor_value_info("counts", TensorProto.FLOAT, shape),
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(model.head.bias)])],
        [numpy_helper.from_array(values, name) for name, values in _constants(model).items()],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION),
        directory / "model.onnx",
    )
    model.ngrams.vocabulary.save(directory)


def _constants(model: TfidfModel) -> Mapping[str, NDArray[Any]]:
    floats = {
        "idf": model.ngrams.idf,
        "of_characters": model.ngrams.of_characters,
        "weight": model.head.weight.T,
        "bias": model.head.bias,
        "one": np.array([1.0]),
        "least": np.array([1e-9]),
    }
    axes = {"last": np.array([-1]), "middle": np.array([1])}
    constants: dict[str, NDArray[Any]] = {name: value.astype(np.float32) for name, value in floats.items()}
    return constants | {name: value.astype(np.int64) for name, value in axes.items()}
