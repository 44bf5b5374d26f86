"""Advice on base models: facts without loading, verdicts with the way out, estimates that follow the work, and a bake-off."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from pipelines.dataset.examples import Example
from pipelines.dataset.split import cluster_key
from pipelines.model_selection.candidates import candidate_bases
from pipelines.model_selection.cost import Cost, estimate
from pipelines.model_selection.replica import Replica
from pipelines.model_selection.verdicts import advise, rows_needed
from pipelines.model_selection.workload import Workload, languages_of, workload_of
from pipelines.models.base_facts import BadBase, BaseFacts, facts_of
from pipelines.models.base_files import installed_base
from pipelines.models.known_bases import known_bases
from pipelines.models.machine import Machine
from schemas.configuration.training import TrainingSettings
from schemas.setting_groups import ModelSettings
from schemas.settings import Settings
from services.cli.main import cli
from services.projects import create_project
from serving.registry.registry import Registry
from tests.support import families
from tests.support.fakes import toy_rows, write_rows

MACHINE = Machine(memory=8 * 10**9, processors=2)
RECIPE = TrainingSettings(threads=1, bf16=False)
KNOWN = [facts for task in ("classification", "generation") for facts in known_bases(task)]
CHEAP = Cost(1.0, 0.1, 1.0, 1e9, 0.01, 3e8)


def work(**changes: Any) -> Workload:
    whole = Workload(
        task="classification",
        rows=500,
        labels=5,
        lengths=np.arange(10, 110),
        completions=np.zeros(100, dtype=np.int64),
        languages=("en",),
        max_length=128,
        max_new_tokens=32,
        passes=16,
        scorings=8,
    )
    return replace(whole, **changes)


def named(part: str) -> BaseFacts:
    return next(facts for facts in KNOWN if part in facts.name)


@pytest.mark.parametrize("facts", KNOWN, ids=lambda facts: facts.name.rsplit("/", 1)[-1])
def test_a_known_bases_configuration_has_the_size_that_its_card_names(facts: BaseFacts) -> None:
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    changes: Mapping[str, Any] = {key: value for key, value in facts.config.items() if key != "model_type"}
    with torch.device("meta"):
        config = AutoConfig.for_model(facts.kind, **changes)
        model = (AutoModelForCausalLM if facts.is_decoder else AutoModel).from_config(config)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(facts.parameters, rel=0.01)
    assert facts.refusal("generation" if facts.is_decoder else "classification") is None
    assert facts.source.startswith("https://huggingface.co/")
    assert facts.licence
    assert facts.languages
    assert facts.context == (512 if "514" in str(facts.config) else facts.context)


def test_facts_are_read_from_files_without_loading_them(tmp_path: Path) -> None:
    folder = families.encoder_base("xlm-roberta", tmp_path / "my-base")
    (folder / "README.md").write_text("---\nlicense: mit\nlanguage: [nl, zh]\n---\n# Mine\n", encoding="utf-8")
    facts = facts_of(folder)
    assert (facts.name, facts.kind, facts.context) == ("my-base", "xlm-roberta", 64)
    assert (facts.languages, facts.licence) == (("nl", "zh"), "mit")
    assert [facts.number(name) for name in ("layers", "width", "units", "heads")] == [2, 32, 64, 2]
    from transformers import AutoModel

    assert facts.parameters == sum(p.numel() for p in AutoModel.from_pretrained(folder).parameters())
    packed = installed_base("generation")
    assert packed is not None
    installed = facts_of(packed)
    assert (installed.kind, installed.number("layers"), installed.context) == ("llama", 30, 8192)
    assert installed.parameters == pytest.approx(named("SmolLM2-135M").parameters, rel=0.01)
    damaged = tmp_path / "broken.gguf"
    damaged.write_bytes(b"no gguf at all, but some bytes of another kind")
    with pytest.raises(BadBase, match=r"broken\.gguf cannot be read"):
        facts_of(damaged)


REASONS: list[tuple[str, dict[str, Any], str]] = [
    ("all-MiniLM", {"lengths": np.full(100, 600)}, "reads 512 tokens, and 100% of the texts are longer"),
    ("all-MiniLM", {"languages": ("zh", "en")}, "knows en, and the texts are in zh, en: name a multilingual base"),
    ("camembert", {}, "knows fr, and the texts are in en"),
    ("gpt2", {}, "is not supported for classification; supported are bert"),
    ("all-MiniLM", {"task": "generation"}, "is not supported for generation; supported are gemma2"),
]


@pytest.mark.parametrize(("name", "changes", "reason"), REASONS)
def test_what_cannot_fit_is_refused_before_anything_is_timed(name: str, changes: dict[str, Any], reason: str) -> None:
    def never(*_: object) -> Cost:
        raise AssertionError("timed")

    [advice] = advise([named(name)], work(**changes), RECIPE, MACHINE, most_minutes=60, estimated=never)
    assert not advice.fits
    assert reason in advice.reasons[0]


def test_memory_time_and_rows_are_judged_and_the_way_out_is_said() -> None:
    small = Machine(memory=10**9, processors=1)
    [advice] = advise([named("xlm-roberta-base")], work(), RECIPE, small, most_minutes=60, estimated=lambda *_: CHEAP)
    assert advice.reasons == ["needs at least 2.2 GB of memory, this machine has 1.0"]
    greedy = replace(CHEAP, train_bytes=9e9)
    [advice] = advise([named("roberta-base")], work(), RECIPE, MACHINE, most_minutes=60, estimated=lambda *_: greedy)
    assert advice.reasons == ["a round needs about 9.0 GB of memory, this machine has 8.0"]
    slow = replace(CHEAP, pass_seconds=600.0)
    [advice] = advise([named("roberta-base")], work(), RECIPE, MACHINE, most_minutes=10, estimated=lambda *_: slow)
    assert advice.reasons == ["a round takes up to 160 minutes, more than 10 (--minutes); about 31 rows would fit"]

    bases = [named("roberta-base"), named("all-MiniLM"), named("multilingual-e5"), named("camembert")]
    times = {bases[0].name: CHEAP, bases[1].name: replace(CHEAP, pass_seconds=0.5), bases[2].name: CHEAP}
    ranked = advise(
        bases, work(rows=100), RECIPE, MACHINE, most_minutes=60, estimated=lambda facts, *_: times[facts.name]
    )
    assert [one.facts.name for one in ranked][:1] == [bases[1].name]
    assert ranked[-1].facts is bases[3]
    assert rows_needed(bases[1], work()) == 40
    assert rows_needed(bases[0], work()) == 250
    roberta = next(one for one in ranked if one.facts is bases[0])
    assert "needs about 250 rows to gain from training, and there are 100" in roberta.notes
    assert json.loads(json.dumps(roberta.as_json()))["licence"] == "mit"


def test_a_workload_is_what_the_rows_and_settings_say(settings: Settings) -> None:
    rows = [Example(text=text, label=label, source="seed") for text, label in toy_rows(200, seed=1)]
    found = workload_of(rows, settings, lambda texts: [len(text.split()) for text in texts], 30)
    assert (found.rows, found.labels, found.max_length) == (200, 3, 32)
    assert found.lengths.tolist() == [len(row.text.split()) for row in rows]
    assert (found.passes, found.scorings) == (4, 2), "two epochs of a search in two folds, and two on all rows"
    many = workload_of(rows * 10, settings, lambda texts: [1] * len(texts), 200)
    assert (many.passes, many.scorings) == (2, 1), "the best checkpoint is kept"
    assert found.beyond(0) == 1.0
    german = ["Ich möchte mein Geld zurück, weil die Bestellung nicht angekommen ist."] * 5
    chinese = ["我想退款，因为订单还没有到，请问什么时候可以收到？"] * 5
    assert set(languages_of([*german, *chinese])) == {"de", "zh"}


def test_estimates_grow_with_what_they_count(tmp_path: Path) -> None:
    facts = facts_of(families.encoder_base("bert", tmp_path))
    wide = replace(named("all-MiniLM"), config={**named("all-MiniLM").config, "num_hidden_layers": 2})
    short = work(lengths=np.full(100, 8))
    cost = estimate(facts, short, RECIPE)
    assert min(cost.pass_seconds, cost.scoring_seconds, cost.once_seconds, cost.serve_seconds) > 0
    assert cost.train_seconds(2, 3) == pytest.approx(
        cost.once_seconds + 2 * cost.pass_seconds + 3 * cost.scoring_seconds
    )
    wider = estimate(wide, short, RECIPE)
    longer = estimate(wide, work(lengths=np.full(100, 120)), RECIPE)
    assert max(cost.pass_seconds, wider.pass_seconds) < longer.pass_seconds
    assert cost.train_bytes < wider.train_bytes <= longer.train_bytes
    replica = Replica(wide, 2, RECIPE)
    assert replica.kept_bytes((4, 8, 1)) < replica.kept_bytes((4, 32, 1)) < replica.kept_bytes((16, 32, 1))
    unlimited = estimate(facts, work(lengths=np.full(100, 500), max_length=500), RECIPE)
    assert unlimited.pass_seconds > 0, "lengths are cut to what the base reads"


def test_a_decoder_is_estimated_too(tmp_path: Path) -> None:
    facts = facts_of(families.decoder_base("qwen2", tmp_path))
    cost = estimate(facts, work(task="generation", completions=np.full(100, 5)), RECIPE)
    assert min(cost.pass_seconds, cost.scoring_seconds, cost.once_seconds, cost.serve_seconds) > 0


def test_candidates_are_the_projects_base_folders_and_well_known_ones(tmp_path: Path) -> None:
    first = families.encoder_base("bert", tmp_path / "bases/first")
    families.encoder_base("distilbert", tmp_path / "bases/second")
    names = [facts.name for facts in candidate_bases(ModelSettings(base_model=str(first)), [tmp_path / "bases"])]
    assert names[:2] == ["first", "second"]
    assert "FacebookAI/xlm-roberta-base" in names
    assert "openai-community/gpt2" not in names
    default = candidate_bases(ModelSettings())
    assert default[0].name == "all-MiniLM-L6-v2"
    assert default[0].path is not None
    assert [facts.name for facts in default].count("all-MiniLM-L6-v2") == 1
    assert not any(facts.name == "sentence-transformers/all-MiniLM-L6-v2" for facts in default)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadBase, match="holds a config"):
        candidate_bases(ModelSettings(), [tmp_path / "empty"])


def test_the_command_advises_and_bakes_off_two_bases(
    tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "no-cache"))
    project = tmp_path / "project"
    create_project(
        project,
        seed=write_rows(tmp_path / "seed.csv", toy_rows(120, seed=1)),
        reference=write_rows(tmp_path / "reference.csv", toy_rows(60, seed=2)),
        base_model=str(tiny_base),
        overrides={"model": {"max_length": 32}, "training": {"epochs": 1, "threads": 1}},
    )
    other = families.encoder_base("distilbert", tmp_path / "other")
    arguments = ["model", "advise", "-c", str(project), "--from", str(other), "--local", "--bake-off", "--json"]
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    value = json.loads(result.stdout)
    assert value["rows"] > 60
    bases = {base["base_model"]: base for base in value["bases"]}
    assert bases.keys() == {tiny_base.name, "other"}
    assert bases["other"]["fits"]
    assert bases["other"]["train_seconds"] > 0
    ranked = value["bake_off"]
    assert {row["base_model"] for row in ranked} == {tiny_base.name, "other"}
    assert ranked[0]["nll"] <= ranked[1]["nll"]
    assert all(row["answer_seconds"] > 0 and row["validation_rows"] > 0 for row in ranked)


def test_the_command_leaves_the_sides_of_the_rows_to_rounds(
    tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "no-cache"))
    rows = toy_rows(120, seed=1)
    settings = create_project(
        tmp_path / "project",
        seed=write_rows(tmp_path / "seed.csv", rows),
        reference=write_rows(tmp_path / "reference.csv", toy_rows(60, seed=2)),
        base_model=str(tiny_base),
        overrides={"model": {"max_length": 32}, "training": {"epochs": 1, "threads": 1}},
    )
    arguments = ["model", "advise", "-c", str(settings.root), "--local", "--json"]
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["rows"] > 60
    registry = Registry(settings.registry_url, settings.model.name)
    assert registry.sides([cluster_key(settings.model.name, text) for text, _ in rows]) == {}
    registry.close()
