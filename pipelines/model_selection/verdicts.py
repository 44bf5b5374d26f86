"""Verdicts: whether a base model fits a project's data and this machine, why not, and what it would cost.

Turns `BaseFacts`, a `Workload` and a `Machine` into an `Advice`. What cannot fit is refused before its layers are timed.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipelines.model_selection.cost import Cost, estimate
from pipelines.model_selection.workload import Workload
from pipelines.models.base_facts import BaseFacts
from pipelines.models.base_files import LEAST_BYTES
from pipelines.models.machine import Machine
from schemas.configuration.training import TrainingSettings

Estimate = Callable[[BaseFacts, Workload, TrainingSettings], Cost]
MOST_BEYOND = 0.05  # share of the texts that may exceed the context
# Rows that fine-tuning needs: a label's few for a model trained to embed sentences (SetFit: Tunstall et al. 2022, 8 and more),
# more for a masked language model (below 50 a label it loses to the probe: docs/lab-notes.md), and pairs for a decoder.
SENTENCE_ROWS, ENCODER_ROWS, DECODER_ROWS = 8, 50, 200
MANY_LANGUAGES = ("multilingual", "mul")
GIGA = 1e9


@dataclass(frozen=True)
class Advice:
    """One base model's verdict: reasons why it does not fit, notes, rows needed, and its cost if it fits."""

    facts: BaseFacts
    reasons: list[str]
    notes: list[str]
    rows_needed: int
    cost: Cost | None
    train_seconds: float | None

    @property
    def fits(self) -> bool:
        """Return whether nothing speaks against it."""
        return not self.reasons

    def as_json(self) -> dict[str, Any]:
        """Return the advice as JSON values."""
        facts = self.facts
        return {
            "base_model": facts.name,
            "on_this_machine": str(facts.path) if facts.path else None,
            "fits": self.fits,
            "reasons": self.reasons,
            "notes": self.notes,
            "parameters": facts.parameters,
            "context": facts.context,
            "languages": list(facts.languages),
            "licence": facts.licence or None,
            "source": facts.source,
            "rows_needed": self.rows_needed,
            "train_seconds": self.train_seconds,
            "cost": asdict(self.cost) if self.cost else None,
        }


def advise(
    bases: Sequence[BaseFacts],
    work: Workload,
    settings: TrainingSettings,
    machine: Machine,
    *,
    most_minutes: float,
    estimated: Estimate = estimate,
    watch: Callable[[BaseFacts], None] = lambda _: None,
) -> list[Advice]:
    """Return the advice on each base; those that fit first, the fastest to train leading.

    Args:
        bases: the candidates.
        work: of the project.
        settings: the recipe.
        machine: its memory is the limit.
        most_minutes: that a round's training may take.
        estimated: returns the cost of a base that nothing else speaks against.
        watch: receives each base before it is timed.

    """
    advice = []
    for facts in bases:
        reasons = _reasons(facts, work, machine)
        cost = seconds = None
        if not reasons:
            watch(facts)
            cost = estimated(facts, work, settings)
            seconds = cost.train_seconds(work.passes, work.scorings)
            reasons += _too_costly(cost, seconds, work, machine, most_minutes)
        advice.append(Advice(facts, reasons, _notes(facts, work), rows_needed(facts, work), cost, seconds))
    return sorted(advice, key=lambda one: (not one.fits, one.train_seconds or 0.0, one.facts.parameters))


def rows_needed(facts: BaseFacts, work: Workload) -> int:
    """Return how many training rows fine-tuning this base needs, by experience."""
    if facts.is_decoder:
        return DECODER_ROWS
    embeds_sentences = "sentences" in facts.note or facts.name.startswith("all-")
    return (SENTENCE_ROWS if embeds_sentences else ENCODER_ROWS) * max(2, work.labels)


def _reasons(facts: BaseFacts, work: Workload, machine: Machine) -> list[str]:
    """Return what speaks against a base before anything is timed."""
    if refusal := facts.refusal(work.task):
        return [refusal]
    reasons = []
    if facts.context is not None and (share := work.beyond(facts.context)) > MOST_BEYOND:
        reasons.append(f"reads {facts.context:,} tokens, and {share:.0%} of the texts are longer")
    covers = set(facts.languages) & set(MANY_LANGUAGES)
    foreign = [code for code in work.languages if code not in facts.languages]
    if facts.languages and not covers and foreign:
        known = ", ".join(facts.languages)
        reasons.append(f"knows {known}, and the texts are in {', '.join(work.languages)}: name a multilingual base")
    if (needed := LEAST_BYTES * facts.parameters) > machine.memory:
        reasons.append(f"needs at least {needed / GIGA:.1f} GB of memory, this machine has {machine.memory / GIGA:.1f}")
    return reasons


def _too_costly(cost: Cost, seconds: float, work: Workload, machine: Machine, most_minutes: float) -> list[str]:
    reasons = []
    if cost.train_bytes > machine.memory:
        reasons.append(
            f"a round needs about {cost.train_bytes / GIGA:.1f} GB of memory, this machine has {machine.memory / GIGA:.1f}"
        )
    if seconds > 60 * most_minutes:
        rows = int(work.rows * 60 * most_minutes / seconds)
        reasons.append(
            f"a round takes up to {seconds / 60:.0f} minutes, more than {most_minutes:g} (--minutes); about {rows:,} rows "
            "would fit"
        )
    return reasons


def _notes(facts: BaseFacts, work: Workload) -> list[str]:
    notes = [facts.note] if facts.note else []
    if facts.context is not None and 0 < (share := work.beyond(facts.context)) <= MOST_BEYOND:
        notes.append(f"{share:.1%} of the texts are longer than it reads")
    if (cut := work.beyond(work.max_length)) > MOST_BEYOND:
        notes.append(f"model.max_length = {work.max_length} cuts {cut:.0%} of the texts")
    if (needed := rows_needed(facts, work)) > work.rows:
        notes.append(f"needs about {needed:,} rows to gain from training, and there are {work.rows:,}")
    if not facts.languages:
        notes.append("its languages are not known: see its card")
    if not facts.licence:
        notes.append("its licence is not known: see its card")
    return notes
