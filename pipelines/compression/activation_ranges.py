"""Activation ranges fixed at export, so that an int8 answer does not depend on the other texts of its call.

Turns a graph of dynamic quantisation, which measures each activation's range on every call, into one of static quantisation with
the least and largest value over calibration rows (Jacob et al. 2018, "Quantization and Training of Neural Networks for
Efficient Integer-Arithmetic-Only Inference", section 3). export.py calls it. Values outside a range are clipped.

Each integer product, its scales and its bias become one `MatMulIntegerToFloat` of ONNX Runtime. The runtime's own fusion would
miss them, because it folds constant scales first.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime as ort
from onnx import NodeProto, TensorProto, helper, numpy_helper

LEVELS = 255  # of an unsigned byte
CONTRIB = "com.microsoft"

Range = tuple[float, float]


def fix_ranges(model: onnx.ModelProto, rows: Sequence[Sequence[int]]) -> None:
    """Replace the measured ranges of a graph by those over `rows`, in place.

    Args:
        model: a graph that `quantize_dynamic` wrote, with the inputs input_ids and attention_mask.
        rows: token ids of calibration texts; each is run alone.

    Raises:
        ValueError: there are no rows.

    """
    if not rows:
        raise ValueError("fixed activation ranges need at least one calibration row, got none")
    graph = _Graph(model.graph)
    measured = _measured(model, rows, [node.input[0] for node in graph.measuring])
    replaced: dict[str, NodeProto | None] = {}
    for node in graph.measuring:
        low, high = measured[node.input[0]]
        quantised, scale, zero = node.output
        step = np.float32((high - low or 1.0) / LEVELS)
        model.graph.initializer.append(numpy_helper.from_array(np.array(step), scale))
        model.graph.initializer.append(numpy_helper.from_array(np.array(round(-low / float(step)), np.uint8), zero))
        replaced[quantised] = helper.make_node("QuantizeLinear", [node.input[0], scale, zero], [quantised], node.name)
        for product in graph.consumers(quantised):
            replaced |= graph.fused(product, scale)
    nodes = [replaced.get(node.output[0], node) for node in model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(node for node in nodes if node is not None)
    if all(known.domain != CONTRIB for known in model.opset_import):
        model.opset_import.append(helper.make_opsetid(CONTRIB, 1))


def _measured(model: onnx.ModelProto, rows: Sequence[Sequence[int]], names: Sequence[str]) -> dict[str, Range]:
    """Return the least and largest value of each activation, zero included: padding must be exact."""
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    exposed.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(exposed.SerializeToString(), options, providers=["CPUExecutionProvider"])
    ranges = dict.fromkeys(names, (0.0, 0.0))
    for row in rows:
        ids = np.array([row], dtype=np.int64)
        values = session.run(list(names), {"input_ids": ids, "attention_mask": np.ones_like(ids)})
        for name, value in zip(names, values, strict=True):
            low, high = ranges[name]
            ranges[name] = min(low, float(value.min())), max(high, float(value.max()))
    return ranges


@dataclass(frozen=True)
class _Graph:
    """The nodes of a graph by what they produce and consume."""

    graph: onnx.GraphProto

    @property
    def measuring(self) -> list[NodeProto]:
        """The nodes that measure a range on each call, where every consumer is a product that can be fused."""
        return [
            node
            for node in self.graph.node
            if node.op_type == "DynamicQuantizeLinear"
            and all(self._scaled(product) is not None for product in self.consumers(node.output[0]))
        ]

    def consumers(self, name: str) -> list[NodeProto]:
        return [node for node in self.graph.node if name in node.input]

    def fused(self, product: NodeProto, scale: str) -> dict[str, NodeProto | None]:
        """Return what replaces a product and the nodes behind it, by their outputs: one fused node, and None for the others."""
        scaled = self._scaled(product)
        assert scaled is not None
        cast, scales, multiply = scaled
        weight_scale = next(name for name in scales.input if name != scale)
        inputs = [*product.input[:2], scale, weight_scale, *product.input[2:4]]
        replaced: dict[str, NodeProto | None] = dict.fromkeys((product.output[0], cast.output[0], scales.output[0]))
        last = multiply
        behind = self.consumers(multiply.output[0])
        if len(behind) == 1 and (bias := self._bias(behind[0], multiply.output[0])):
            replaced[multiply.output[0]] = None
            inputs, last = [*inputs, bias], behind[0]
        replaced[last.output[0]] = helper.make_node(
            "MatMulIntegerToFloat", inputs, [last.output[0]], product.name, domain=CONTRIB
        )
        return replaced

    def _scaled(self, product: NodeProto) -> tuple[NodeProto, NodeProto, NodeProto] | None:
        """Return the cast, the product of scales and the multiplication behind an integer product; None for another pattern."""
        if product.op_type != "MatMulInteger":
            return None
        casts = self.consumers(product.output[0])
        if len(casts) != 1 or casts[0].op_type != "Cast":
            return None
        multiplies = self.consumers(casts[0].output[0])
        if len(multiplies) != 1 or multiplies[0].op_type != "Mul":
            return None
        name = next(name for name in multiplies[0].input if name != casts[0].output[0])
        scales = [node for node in self.graph.node if name in node.output]
        return (casts[0], scales[0], multiplies[0]) if scales and scales[0].op_type == "Mul" else None

    def _bias(self, add: NodeProto, summand: str) -> str | None:
        """Return the other summand of an addition if it is a constant vector."""
        vectors = {tensor.name for tensor in self.graph.initializer if len(tensor.dims) == 1}
        others = [name for name in add.input if name != summand]
        return others[0] if add.op_type == "Add" and len(others) == 1 and others[0] in vectors else None
