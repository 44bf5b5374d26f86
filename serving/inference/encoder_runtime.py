"""The encoder runtime: one loaded model version that turns texts into calibrated probabilities, or numbers for a regression.

Loads a verified directory into an immutable `Runtime` on ONNX Runtime, with an encoder's graph or that of
TF-IDF. live.py swaps it, batching.py runs it, and evaluation scores with it, so the gates judge the same artefact that serves.
It knows no registry, queue or HTTP.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from schemas.manifests import ModelManifest
from serving.inference.calibration import GOLDEN_COVERAGE
from serving.inference.golden import GoldenMismatch
from serving.inference.normalise import normaliser_of
from serving.inference.outputs import outputs_of
from serving.inference.passes import ROWS, passes
from serving.inference.text_inputs import inputs_of
from serving.model_directory import verify


class Runtime:
    """An immutable model version in memory. Safe to call from several threads."""

    def __init__(self, directory: Path, digest: str | None = None, *, threads: int = 1) -> None:
        """Load and check a version.

        Args:
            directory: a model version directory.
            digest: the version's digest, checked if given.
            threads: ONNX Runtime's threads within one operator.

        Raises:
            ArtifactDamaged: a hash differs.
            GoldenMismatch: the golden outputs differ.
            UnknownTask: the manifest's task cannot be served.
            UnknownNormaliser: its texts cannot be normalised as in training.

        """
        self.manifest: ModelManifest = verify(directory, digest)
        self.digest = digest
        self.outputs = outputs_of(self.manifest)
        self._normalise = normaliser_of(self.manifest)
        self._inputs = inputs_of(self.manifest, directory)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Spinning threads would take CPU time from the other workers and the training round.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = ort.InferenceSession(
            directory / "model.onnx",
            options,
            providers=["CPUExecutionProvider"],
            # This fused kernel is not vectorised: it takes a sixth of an fp32 model's time, a quarter of an int8 model's.
            disabled_optimizers=["SkipLayerNormFusion"],
        )
        self.columns = int(self.session.get_outputs()[0].shape[-1])
        self._check_golden()

    @property
    def version(self) -> str:
        """Return the model version's name."""
        return self.manifest.model_version

    @property
    def labels(self) -> list[str]:
        """Return the label of each output column."""
        return self.manifest.labels

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, normalised and truncated as in training."""
        return self._inputs.encode([self._normalise(text) for text in texts])

    def run(self, encoded: Sequence[Sequence[int]]) -> NDArray[np.float64]:
        """Return calibrated outputs [n, k] of token ids. Rows are padded to the longest: batch rows of similar length."""
        return self.outputs.apply(self._run(encoded))

    def probabilities(self, texts: Sequence[str], batch: int = ROWS) -> NDArray[np.float64]:
        """Return calibrated outputs [n, k] of any number of texts, run in batches of similar length."""
        return self.outputs.apply(self.logits(texts, batch))

    def logits(self, texts: Sequence[str], batch: int = ROWS) -> NDArray[np.float64]:
        """Return the logits [n, k] of any number of texts, before calibration."""
        encoded = self.encode(texts)
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
        result = np.zeros((len(encoded), self.columns))
        for start, end in passes([len(encoded[i]) for i in order], batch):
            rows = order[start:end]
            result[rows] = self._run([encoded[i] for i in rows])
        return result

    def _run(self, encoded: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = self.session.run(["logits"], self._inputs.arrays(encoded))[0]
        return logits

    def _check_golden(self) -> None:
        golden = self.manifest.golden
        if golden.texts:
            difference = np.abs(self.probabilities(golden.texts) - np.array(golden.probabilities)).max()
            if not difference <= golden.tolerance:
                raise GoldenMismatch(f"{self.version}: golden outputs differ by {difference:.2g}")
            inside = self.outputs.sets(np.array(golden.probabilities), GOLDEN_COVERAGE)
            # Versions made before prediction sets were recorded have no golden sets.
            if golden.sets and [np.flatnonzero(row).tolist() for row in inside] != golden.sets:
                raise GoldenMismatch(f"{self.version}: golden prediction sets differ")
