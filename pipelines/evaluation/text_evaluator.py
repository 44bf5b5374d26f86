"""Evaluator for generation: greedy texts, as the version would serve them, and the likelihood of the reference answers.

Turns a `DecoderRuntime` and rows into a calibration, golden outputs and `TextEvidence`. evaluators.py lists it among the tasks.
Generation is slow, so a fixed subset represents a large reference set.
"""

import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer

from pipelines.calibration import maps, sequence_confidence
from pipelines.dataset.build import Dataset
from pipelines.dataset.files import FileRow
from pipelines.evaluation import robustness
from pipelines.evaluation.answer_rule import AnswerRule
from pipelines.evaluation.evidence.evidence import Evidence
from pipelines.evaluation.evidence.generation import Likelihood, TextEvidence, accepted, score_text
from pipelines.models.decoder import Decoder
from pipelines.training.tasks.generation import encoded
from schemas.configuration.training import TrainingSettings
from schemas.manifests import Calibration, Golden
from schemas.reports import Robustness
from serving.inference.decoder_runtime import DecoderRuntime, scored
from serving.inference.text_generator import TextGenerator

log = logging.getLogger("ratchet.evaluation")

MOST = 200  # rows to generate for, in calibration and in evaluation
CHANGED_NATS = float(np.log(2))  # loss of log-likelihood per token at which an edit has changed the answer


class TextEvaluator:
    """Evaluator of generation."""

    def calibrate(self, writer: DecoderRuntime, rows: Sequence[FileRow], _rule: AnswerRule) -> Calibration:
        """Fit the confidence of generated texts to whether they count as accepted."""
        sampled = self.sample(rows)
        written = writer.generate([row.text for row in sampled])
        logprobs = [one.logprobs for one in written]
        fitted = sequence_confidence.fit(logprobs, accepted([one.text for one in written], sampled))
        return Calibration(fitted_rows=fitted.fitted_rows, sequence=fitted)

    def golden(self, writer: DecoderRuntime, _fitted: Calibration, texts: Sequence[str], tolerance: float) -> Golden:
        """Return the beginnings of generated texts, with their token log-probabilities."""
        return writer.golden(texts, tolerance)

    def sample(self, rows: Sequence[FileRow]) -> list[FileRow]:
        """Return at most MOST rows, the same ones in every round."""
        sampled = [rows[n] for n in sorted(robustness.chosen_rows([row.text for row in rows], MOST).tolist())]
        if len(sampled) < len(rows):
            log.info("texts are generated for %d of %d rows", len(sampled), len(rows))
        return sampled

    def evaluate(
        self, writer: DecoderRuntime, rows: Sequence[FileRow], *, split: str, cross: AnswerRule | None = None
    ) -> Evidence:
        """Generate a text for each row and score it against the row's answer; `cross` as for an `Evaluator`."""
        written = writer.generate([row.text for row in rows])
        return score_text(
            [one.text.strip() for one in written],
            likelihood(writer, rows),
            rows,
            version=writer.version,
            split=split,
            logprobs=[one.logprobs for one in written],
            calibration=writer.manifest.calibration,
            fold=np.arange(len(rows)) % maps.FOLDS if cross else None,
        )

    def edit_flips(self, writer: DecoderRuntime, evidence: Evidence, rows: NDArray[np.int64]) -> dict[str, Robustness]:
        """Return, by kind of edit, for how many rows the generated answer becomes less than half as likely per token."""
        assert isinstance(evidence, TextEvidence)
        given = [FileRow(evidence.rows[n].text, evidence.texts[n]) for n in rows.tolist() if evidence.texts[n]]
        if not given:
            return {}
        flips, before = {}, likelihood(writer, given)
        for kind, edit in robustness.EDITS.items():
            after = likelihood(writer, [FileRow(edit(row.text), row.label) for row in given])
            changed = (after.nll - before.nll) / before.tokens > CHANGED_NATS
            flips[kind] = Robustness(edited=len(given), flipped=int(changed.sum()))
        return flips

    def score_baselines(
        self, base: Decoder, dataset: Dataset, rows: Sequence[FileRow], _settings: TrainingSettings, _rule: AnswerRule
    ) -> dict[str, Evidence]:
        """Score the answer of the most similar training row (TF-IDF), and the untrained base model's; both with its NLL."""
        known = [*dataset.train, *dataset.validation]
        words = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True)
        theirs = words.fit_transform([row.text for row in known])
        nearest = (words.transform([row.text for row in rows]) @ theirs.T).argmax(axis=1)
        texts = [known[n].label for n in np.asarray(nearest).ravel().tolist()]
        untrained = TextGenerator(base.tokenizer, base.model, base.max_length, base.max_new_tokens, base.normalise)
        written = [one.text for one in untrained.generate([row.text for row in rows])]
        likely = likelihood(base, rows)
        return {
            "probe": score_text(texts, likely, rows, version="nearest row", split="reference"),
            "untrained": score_text(written, likely, rows, version="untrained", split="reference"),
        }


def likelihood(model: Decoder | TextGenerator, rows: Sequence[FileRow]) -> Likelihood:
    """Return the likelihood of the rows' answers under a model."""
    pairs = [encoded(model, row.text, row.label) for row in rows]
    logprobs = scored(model.model, [ids for ids, _ in pairs], [length for _, length in pairs])
    return Likelihood(
        np.array([-sum(one) for one in logprobs]), np.array([len(one) for one in logprobs], dtype=np.float64)
    )
