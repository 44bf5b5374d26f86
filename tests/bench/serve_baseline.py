"""The baseline of `make bench-serve`: the same model served as BentoML's and peft's documentation do it.

A batchable BentoML endpoint over torch eager and an unmerged LoRA adapter, started as
`bentoml serve tests.bench.serve_baseline:Baseline`. It answers label, confidence and all probabilities; it writes no events
and gives no tokens, which is in its favour. Settings come from the environment; GRID is what bench/serve.py tries.
"""

import json
import os
from pathlib import Path
from typing import Any

import bentoml
import torch
from safetensors.torch import load_file

# (workers, torch threads in each, max_batch_size, max_latency_ms). Below a second it answers 503 to most of 32 callers.
GRID = [(2, 1, 8, 1000), (1, 2, 32, 1000), (2, 1, 8, 10000), (2, 1, 16, 10000), (1, 2, 16, 10000), (1, 2, 32, 10000)]

WORKERS, THREADS, BATCH, LATENCY_MS = json.loads(os.environ.get("BASELINE", json.dumps(GRID[0])))


@bentoml.service(name="baseline", workers=WORKERS, traffic={"timeout": 30}, logging={"access": {"enabled": False}})
class Baseline:
    def __init__(self) -> None:
        from peft import PeftModel
        from transformers import AutoModel, AutoTokenizer

        from pipelines.models.encoder import base_model_path, mean_pool

        torch.set_num_threads(THREADS)
        version = Path(os.environ["BASELINE_VERSION"])
        manifest = json.loads((version / "manifest.json").read_text(encoding="utf-8"))
        base = base_model_path(None)
        self.labels: list[str] = manifest["labels"]
        self.temperature: float = manifest["calibration"].get("temperature", 1.0)
        self.max_length: int = manifest["max_length"]
        self.tokenizer: Any = AutoTokenizer.from_pretrained(base)
        self.model: Any = PeftModel.from_pretrained(AutoModel.from_pretrained(base), version / "adapter").eval()
        head = load_file(version / "head.safetensors")
        self.weight, self.bias, self.mean_pool = head["weight"], head["bias"], mean_pool

    @bentoml.api(batchable=True, max_batch_size=BATCH, max_latency_ms=LATENCY_MS)  # type: ignore[untyped-decorator]
    def predict(self, texts: list[str]) -> list[dict[str, Any]]:
        with torch.inference_mode():
            found = self.tokenizer(
                texts, truncation=True, max_length=self.max_length, padding=True, return_tensors="pt"
            )
            hidden = self.model(**found).last_hidden_state
            logits = self.mean_pool(hidden, found["attention_mask"]) @ self.weight.T + self.bias
            probabilities = (logits / self.temperature).softmax(dim=1)
        best = probabilities.argmax(dim=1)
        return [
            {
                "label": self.labels[int(b)],
                "confidence": float(row[b]),
                "probabilities": dict(zip(self.labels, row.tolist(), strict=True)),
            }
            for row, b in zip(probabilities, best, strict=True)
        ]
