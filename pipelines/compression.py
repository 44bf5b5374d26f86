"""From a trained classifier to what serves: merge the adapter, export to ONNX.

Turns a torch classifier into the files of a model version. training_round.py calls it. It deliberately does not quantise,
distil or prune yet (docs/architecture.md, Critiques).
"""

import contextlib
import copy
import io
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from pipelines.training.model import Classifier, Encoder


def save_adapter(model: Classifier, directory: Path) -> None:
    """Write adapter/ and head.safetensors: what, with the base model, gives the version again."""
    model.encoder.save_pretrained(directory / "adapter", save_embedding_layers=False)
    (directory / "adapter" / "README.md").unlink(missing_ok=True)
    head = {name: tensor.detach().contiguous() for name, tensor in model.head.state_dict().items()}
    save_file(head, directory / "head.safetensors")


def export(model: Classifier, encoder: Encoder, directory: Path) -> None:
    """Merge a copy and write model.onnx and tokenizer.json.

    The graph takes input_ids and attention_mask, int64 [batch, sequence], both dynamic, and gives logits [batch, k].
    """
    # A copy: the frozen weights of `model` are the base model's own, and merging adds to them in place.
    merged = copy.deepcopy(model)
    merged.encoder = merged.encoder.merge_and_unload()
    merged.eval()
    example: Any = encoder.batch(["one text", "another text, somewhat longer"])
    shape = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence", max=encoder.max_length)}
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")  # the exporter warns of its own internals
            torch.onnx.export(
                merged,
                (example["input_ids"], example["attention_mask"]),
                directory / "model.onnx",
                input_names=["input_ids", "attention_mask"],
                output_names=["logits"],
                dynamo=True,
                dynamic_shapes={"input_ids": shape, "attention_mask": shape},
                external_data=False,
                verbose=False,
            )
    finally:
        quiet.setLevel(level)
    encoder.tokenizer.backend_tokenizer.save(str(directory / "tokenizer.json"))
