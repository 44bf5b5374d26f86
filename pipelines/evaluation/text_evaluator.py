"""Evaluation of models that write: a version's answers, greedy as it would serve them, and how likely the right ones are to it.

Turns a `DecoderRuntime` and rows into a calibration, golden answers and `TextEvidence`; evaluation.py lists it among the tasks.
Writing is slow, so that a keyed share of the rows stands for all of a large reference. It deliberately judges nothing.
"""

import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer

from pipelines.calibration import sequence_confidence
from pipelines.dataset.build import Dataset
from pipelines.dataset.files import FileRow
from pipelines.evaluation import robustness
from pipelines.evaluation.evidence.evidence import Evidence
from pipelines.evaluation.evidence.generation import Likelihood, TextEvidence, accepted, score_text
from pipelines.models.decoder import Decoder
from pipelines.training.tasks.generation import encoded
from schemas.manifests import Calibration, Golden
from schemas.reports import Robustness
from schemas.settings import TrainingSettings
from serving.inference.decoder_runtime import DecoderRuntime, scored

log = logging.getLogger("ratchet.evaluation")

MOST = 200  # rows that are written to for each of calibration and judgement
SHAKEN = float(np.log(2))  # nats a token by which an answer has become another


class ByText:
    """The task whose models write."""

    def calibrate(self, writer: DecoderRuntime, rows: Sequence[FileRow], _sets: str) -> Calibration:
        """Whether what is written to these rows would do, by how sure the model was."""
        asked = self.chosen(rows)
        written = writer.generate([row.text for row in asked])
        logprobs = [one.logprobs for one in written]
        fitted = sequence_confidence.fit(logprobs, accepted([one.text for one in written], asked))
        return Calibration(fitted_rows=fitted.fitted_rows, sequence=fitted)

    def golden(self, writer: DecoderRuntime, _fitted: Calibration, texts: Sequence[str], tolerance: float) -> Golden:
        """The beginnings of answers, and how likely their tokens are."""
        return writer.golden(texts, tolerance)

    def chosen(self, rows: Sequence[FileRow]) -> list[FileRow]:
        """MOST of them, the same ones in every round."""
        found = [rows[n] for n in sorted(robustness.chosen_rows([row.text for row in rows], MOST).tolist())]
        if len(found) < len(rows):
            log.info("%d of %d rows are written to", len(found), len(rows))
        return found

    def evaluate(self, writer: DecoderRuntime, rows: Sequence[FileRow], *, split: str) -> Evidence:
        """Written to, and held against the rows' own answers."""
        written = writer.generate([row.text for row in rows])
        return score_text(
            [one.text.strip() for one in written],
            likelihood(writer, rows),
            rows,
            version=writer.version,
            split=split,
            logprobs=[one.logprobs for one in written],
            calibration=writer.manifest.calibration,
        )

    def edits(self, writer: DecoderRuntime, evidence: Evidence, rows: NDArray[np.int64]) -> dict[str, Robustness]:
        """Whether the answer to each of these rows is less than half as likely, token by token, once its text is edited."""
        assert isinstance(evidence, TextEvidence)
        given = [FileRow(evidence.rows[n].text, evidence.texts[n]) for n in rows.tolist() if evidence.texts[n]]
        if not given:
            return {}
        found, before = {}, likelihood(writer, given)
        for kind, edit in robustness.EDITS.items():
            after = likelihood(writer, [FileRow(edit(row.text), row.label) for row in given])
            shaken = (after.nll - before.nll) / before.tokens > SHAKEN
            found[kind] = Robustness(edited=len(given), flipped=int(shaken.sum()))
        return found

    def baseline(
        self, base: Decoder, dataset: Dataset, rows: Sequence[FileRow], _settings: TrainingSettings
    ) -> Evidence:
        """The answer of the training row whose words are most like a row's (TF-IDF); for the NLL, the untrained base model."""
        known = [*dataset.train, *dataset.validation]
        words = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True)
        theirs = words.fit_transform([row.text for row in known])
        nearest = (words.transform([row.text for row in rows]) @ theirs.T).argmax(axis=1)
        texts = [known[n].label for n in np.asarray(nearest).ravel().tolist()]
        return score_text(texts, likelihood(base, rows), rows, version="nearest row", split="reference")


def likelihood(model: Decoder | DecoderRuntime, rows: Sequence[FileRow]) -> Likelihood:
    """How likely the rows' own answers are to a model."""
    pairs = [encoded(model, row.text, row.label) for row in rows]
    said = scored(model.model, [ids for ids, _ in pairs], [length for _, length in pairs])
    return Likelihood(np.array([-sum(one) for one in said]), np.array([len(one) for one in said], dtype=np.float64))
