"""Smoke test: a fresh process loads an artefact, or gives the reason why it can't."""

from pathlib import Path

from pipelines.evaluation.smoke_test import try_in_fresh_process


def test_an_artefact_that_does_not_load_is_a_reason_and_no_exception(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"x" * 2_000_000)
    tried = try_in_fresh_process(tmp_path)
    assert tried.error is not None
    assert "manifest.json: missing" in tried.error
    assert (tried.latency_ms, tried.memory_mb, tried.size_mb) == (None, None, 2.0)
