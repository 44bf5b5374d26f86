"""What a round says while it trains: on a terminal or in plain lines, in its record and in the status."""

import pytest

from schemas.records import Pace
from schemas.settings import Settings
from services.cli.rounds import shown_progress
from services.cli.status import round_line
from services.rounds.process import Heart
from serving.registry.registry import Registry

PACE = Pace(loss=0.41234, tokens_per_s=3120.4, eta_s=81.2)


def test_plain_lines_come_every_tenth_with_the_pace(capsys: pytest.CaptureFixture[str]) -> None:
    with shown_progress() as progress:
        for percent in range(0, 101, 2):
            progress("training", percent / 100, PACE)
        progress("gates", 0.0, None)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 12
    assert lines[5].endswith("training 50 %  (loss 0.412, 3,120 tokens/s, 81 s left)")
    assert lines[-1].endswith("gates 0 %")


def test_the_record_and_the_status_have_the_pace(settings: Settings, registry: Registry) -> None:
    record = registry.claim_round(reason="test", cut={}, token=None)
    assert record is not None
    registry.start_round(record.round_id)
    heart = Heart(registry, record.round_id, lambda *_: None)
    heart.progress("training", 0.5, PACE)
    heart.beat()
    assert registry.round(record.round_id).pace == PACE
    shown = round_line(registry.round(record.round_id).model_dump(mode="json"))
    assert "training 50% (loss 0.412, 3,120 tokens/s, 81 s left)" in shown
    heart.progress("gates", 0.0)
    heart.beat()
    assert registry.round(record.round_id).pace is None
