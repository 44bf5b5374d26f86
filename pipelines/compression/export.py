"""Export: merge the adapter, write the ONNX graph, quantise it.

Turns a torch model into the files of a model version, and a graph into an int8 graph. candidates.py calls it.
"""

import contextlib
import copy
import io
import logging
import platform
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.quant_utils import add_pre_process_metadata
from safetensors.torch import save_file

from pipelines.compression.activation_ranges import fix_ranges
from pipelines.compression.packing import PackedModel
from pipelines.models.encoder import NORM, Encoder, TextModel
from pipelines.models.families import encoder_family
from pipelines.training.warm_start import ADAPTER, HEAD, WEIGHTS


def save_weights(model: TextModel, directory: Path) -> None:
    """Write head.safetensors and either adapter/ or model.safetensors, from which a warm start restores the model."""
    if model.adapted:
        model.encoder.save_pretrained(directory / ADAPTER, save_embedding_layers=False)
        (directory / ADAPTER / "README.md").unlink(missing_ok=True)
    else:
        save_file(
            {name: t.detach().contiguous() for name, t in model.encoder.state_dict().items()}, directory / WEIGHTS
        )
    head = {name: t.detach().contiguous() for name, t in model.head.state_dict().items()}
    save_file(head, directory / HEAD, metadata={"norm": str(NORM)})


def export(model: TextModel, encoder: Encoder, directory: Path) -> None:
    """Merge a copy and write model.onnx and tokenizer.json.

    The graph takes input_ids and attention_mask, int64 [batch, sequence], both dynamic, and returns `logits` [batch, k] for
    every task. Padding costs it little where the family can be packed (packing.py).
    """
    # Merging changes the frozen weights in place, and those are shared with the base model: merge a copy.
    merged = copy.deepcopy(model)
    if merged.adapted:
        merged.encoder = merged.encoder.merge_and_unload()
    merged.eval()
    example: Any = encoder.batch(["one text", "another text, somewhat longer"])
    shape = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence", max=encoder.max_length)}
    with _errors_only("torch.onnx"), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # the exporter warns of its own internals
        torch.onnx.export(
            PackedModel(merged) if encoder_family(merged.encoder.config.model_type).packs else merged,
            (example["input_ids"], example["attention_mask"]),
            directory / "model.onnx",
            input_names=["input_ids", "attention_mask"],
            output_names=["logits"],
            dynamo=True,
            dynamic_shapes={"input_ids": shape, "attention_mask": shape},
            external_data=False,
            verbose=False,
        )
    encoder.tokenizer.backend_tokenizer.save(str(directory / "tokenizer.json"))


def quantise(source: Path, target: Path, rows: Sequence[Sequence[int]]) -> None:
    """Write `target`, the int8 graph of `source`: weights per output channel, activations within fixed ranges over `rows`.

    `rows` are token ids of training texts, without padding. Fixed ranges make a text's answer the same alone and in any batch.
    One scale for a whole weight matrix loses two more points of agreement, and is no faster. On x86 processors without VNNI,
    weights use 7 bits: with 8, ONNX Runtime's products saturate there (its documentation on quantization, "U8S8").
    """
    model = onnx.load(source)
    add_pre_process_metadata(model)  # the exporter has inferred all shapes already
    with _errors_only("root"):  # it warns of integer tensors, which it leaves as they are
        quantize_dynamic(model, target, per_channel=True, reduce_range=_saturates(), weight_type=QuantType.QInt8)
    quantised = onnx.load(target)
    fix_ranges(quantised, rows)
    onnx.save(quantised, target)


@contextlib.contextmanager
def _errors_only(name: str) -> Iterator[None]:
    """Silence a library's logger below ERROR within the block."""
    logger = logging.getLogger(None if name == "root" else name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _saturates() -> bool:
    """Return whether this processor adds int8 products in 16 bits: x86 without VNNI, or of an unknown kind."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    try:
        return "vnni" not in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return True
