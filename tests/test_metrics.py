"""Metrics against their definitions, written out in numpy, and against one another."""

import numpy as np
import pytest
from scipy.stats import pearsonr, rankdata

from pipelines.metrics import point

DRAW = np.random.default_rng(7)


def by_hand(truth: np.ndarray, answers: np.ndarray) -> dict[str, float]:
    """Averages of precision, recall and F1 over the columns of 0/1 matrices [n, k]."""
    hits, said, true = (truth & answers).sum(axis=0), answers.sum(axis=0), truth.sum(axis=0)
    p, r = (np.divide(hits, of, out=np.zeros(len(hits)), where=of > 0) for of in (said, true))
    f = np.divide(2 * hits, said + true, out=np.zeros(len(hits)), where=said + true > 0)
    found = {}
    for name, values in (("precision", p), ("recall", r), ("f1", f)):
        found[f"macro_{name}"] = values.mean()
        found[f"weighted_{name}"] = (values * true).sum() / true.sum()
    both = {"precision": hits.sum() / said.sum(), "recall": hits.sum() / true.sum()}
    f1 = 2 * hits.sum() / (said.sum() + true.sum())
    return found | {f"micro_{name}": value for name, value in both.items()} | {"micro_f1": f1}


def test_classification_metrics_are_their_definitions() -> None:
    truth = DRAW.integers(0, 5, 300)
    answers = np.where(DRAW.random(300) < 0.6, truth, DRAW.integers(0, 4, 300))
    found = point.classification(truth, answers)
    one_hot = np.eye(5, dtype=bool)
    for name, value in by_hand(one_hot[truth], one_hot[answers]).items():
        assert found[name] == pytest.approx(value), name
    assert found["accuracy"] == pytest.approx((truth == answers).mean()) == pytest.approx(found["micro_f1"])
    assert found["balanced_accuracy"] == pytest.approx(found["macro_recall"])
    counts = point.confusion(truth, answers, 5)
    assert counts.trace() / counts.sum() == pytest.approx(found["accuracy"])
    assert counts.sum(axis=1).tolist() == np.bincount(truth, minlength=5).tolist()
    assert point.classification(truth, truth)["macro_f1"] == 1


def test_multilabel_metrics_are_their_definitions() -> None:
    truth = DRAW.random((200, 6)) < 0.3
    truth[:, 5] = False
    answers = truth ^ (DRAW.random((200, 6)) < 0.1)
    answers[:, 5] = False
    found = point.multilabel(truth, answers)
    for name, value in by_hand(truth, answers).items():
        assert found[name] == pytest.approx(value), name
    assert found["subset_accuracy"] == pytest.approx((truth == answers).all(axis=1).mean())
    assert found["hamming_loss"] == pytest.approx((truth != answers).mean())
    both, either = (truth & answers).sum(axis=1), truth.sum(axis=1) + answers.sum(axis=1)
    assert found["samples_f1"] == pytest.approx(np.where(either > 0, 2 * both / np.maximum(either, 1), 1).mean())


def test_regression_metrics_are_their_definitions() -> None:
    truth = DRAW.integers(1, 11, 150).astype(float)
    answers = truth + DRAW.normal(0, 2, 150).round(1)
    found = point.regression(truth, answers)
    errors = answers - truth
    assert found["mae"] == pytest.approx(np.abs(errors).mean())
    assert found["rmse"] == pytest.approx(np.sqrt((errors**2).mean()))
    assert found["r2"] == pytest.approx(1 - (errors**2).sum() / ((truth - truth.mean()) ** 2).sum())
    assert found["spearman"] == pytest.approx(pearsonr(rankdata(truth), rankdata(answers)).statistic)
    assert np.isnan(point.regression(truth, np.ones(150))["spearman"])
    assert np.isnan(point.regression(truth[:1], answers[:1])["r2"])


def test_metrics_of_texts_are_their_definitions() -> None:
    from nltk.translate.bleu_score import corpus_bleu

    answers = ["the cat sat on the mat today", "a dog runs across the wide road", "no", "Yes  indeed"]
    given = [
        ["the cat sat on a mat", "the cat was sitting on the mat today"],
        ["a dog runs across the road", "the dog ran"],
        ["maybe not"],
        ["yes indeed"],
    ]
    found = point.generation(given, answers)
    # nltk counts a 4-gram even in texts that are too short for one
    by_words = corpus_bleu([[one.split() for one in each] for each in given[:2]], [one.split() for one in answers[:2]])
    assert point.generation(given[:2], answers[:2])["bleu"] == pytest.approx(by_words)
    assert found["exact_match"] == 0.25

    def overlap(reference: str, answer: str) -> float:
        """F1 of the words of both."""
        left, right = (text.lower().split() for text in (reference, answer))
        hits = sum(min(left.count(word), right.count(word)) for word in set(left))
        return 2 * hits / (len(left) + len(right))

    best = [max(overlap(one, answer) for one in each) for each, answer in zip(given, answers, strict=True)]
    assert found["rouge1"] == pytest.approx(np.mean(best))
    assert found["rouge2"] <= found["rougel"] <= found["rouge1"]
    rows = point.row_chrf(given, answers)
    assert rows.mean() == pytest.approx(found["chrf"])
    assert rows[3] == pytest.approx(point.row_chrf([["yes indeed"]], ["Yes indeed"])[0])
    assert list(point.generation([["a b c d"]], ["a b c d"]).values()) == pytest.approx([1.0] * 6)
