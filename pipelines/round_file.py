"""round.json: the registry's record of a round, in the round's folder.

Turns a record into the file that people and scripts read beside the round's pages. A round writes it once the registry knows its
outcome, so a process killed in between leaves it behind, and an approval or a label ends a round elsewhere. The scheduler
therefore brings the files up to date at its start and after each round.
"""

from collections.abc import Sequence

from schemas.records import RoundRecord, RoundState
from schemas.settings import Settings
from serving.atomic_write import atomic_write

RECENT = 200  # rounds whose files are compared with the registry


def write_round_file(settings: Settings, record: RoundRecord) -> None:
    """Write a round's record into its folder, if this machine has the folder and the file differs."""
    path = settings.path("state/rounds") / record.round_id / "round.json"
    text = record.model_dump_json(indent=2)
    if not path.parent.is_dir() or (path.exists() and path.read_bytes() == text.encode()):
        return
    atomic_write(path, text)


def update_round_files(settings: Settings, rounds: Sequence[RoundRecord]) -> None:
    """Write the files of the newest rounds that no process runs; `rounds` are the newest first."""
    for record in rounds[:RECENT]:
        if record.state not in (RoundState.CLAIMED, RoundState.RUNNING):
            write_round_file(settings, record)
