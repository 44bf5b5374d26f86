"""What `ratchet init` says of the files it was given, and what it refuses."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipelines.dataset.files import Columns
from pipelines.gates.policy import Policy
from schemas.setting_groups import ModelSettings
from schemas.settings import Settings, load_settings
from schemas.targets import Task
from services.checks.data_summary import DataError, ProjectData, check, describe, health, read_data
from services.cli.main import cli
from services.projects import create_project, fill_taxonomy
from serving.registry.registry import Registry


def rows(*labels: str, first: int = 0) -> str:
    return "text,label\n" + "".join(f"text number {first + n},{label}\n" for n, label in enumerate(labels))


def data(path: Path, seed: str, reference: str | None = None, task: Task = "classification") -> ProjectData:
    (path / "seed.csv").write_text(seed, encoding="utf-8")
    if reference is not None:
        (path / "reference.csv").write_text(reference, encoding="utf-8")
    return read_data(path / "seed.csv", path / "reference.csv" if reference else None, task, Columns())


def said(found: ProjectData, settings: Settings | None = None) -> list[str]:
    return describe(found, settings or Settings(), Policy())


def test_the_rows_the_labels_and_the_rarest_are_said(tmp_path: Path) -> None:
    lines = said(data(tmp_path, rows(*"aaab"), rows(*"ab" * 100, first=10)))
    assert lines[:2] == [
        "seed: 4 rows, from columns 'text' and 'label'; 2 labels, the rarest: b 1, a 3",
        "reference: 200 rows, from columns 'text' and 'label'; 2 labels, the rarest: a 100, b 100",
    ]


@pytest.mark.parametrize(
    ("task", "content", "line"),
    [
        ("regression", "text,target\nx,-1\ny,2.5\n", "seed: 2 rows, from columns 'text' and 'target'; targets from -1 to 2.5"),
        ("generation", "prompt,completion\nx,yes\ny,no\n", "seed: 2 rows, from columns 'prompt' and 'completion'"),
        ("multilabel", "text,labels\nx,a|b\ny,b\n", "seed: 2 rows, from columns 'text' and 'labels'; 2 labels, the rarest: a 1, "
         "b 2"),
    ],
)  # fmt: skip
def test_each_task_is_summed_up(tmp_path: Path, task: Task, content: str, line: str) -> None:
    assert said(data(tmp_path, content, task=task))[0] == line


def test_what_the_two_files_disagree_about_is_warned_of(tmp_path: Path) -> None:
    seed, reference = rows("Refund", "card", "only", "card"), rows("refund", "card", "other", first=3)
    lines = said(data(tmp_path, seed, reference))
    assert lines[4:8] == [
        "warning: 1 text of the seed is in the reference too: it judges and never trains",
        "warning: labels that only the seed has: Refund (1 row), only (1 row): no row judges them",
        "warning: labels that only the reference has: other (1 row), refund (1 row): no row trains them",
        "warning: seed and reference: labels 'Refund' and 'refund' differ only by case: are they the same label?",
    ]


def test_notes_of_the_files_are_warnings(tmp_path: Path) -> None:
    lines = said(data(tmp_path, rows("a", "A", "NaN")))
    assert lines[3].startswith("warning: seed: label 'NaN' (1 row): a word for a missing value")
    assert lines[4] == "warning: seed: labels 'A' and 'a' differ only by case: are they the same label?"


def test_too_few_rows_that_judge_are_said_with_how_many_are_required(tmp_path: Path) -> None:
    few = said(data(tmp_path, rows(*"ab" * 10), rows(*"ab" * 40, first=100)))[-1]
    assert few.startswith("warning: about ")
    assert "will judge candidates; at least 100 are required (data.min_judge_rows in policy.toml)" in few
    number = int(few.split()[2])
    assert 60 < number < 99
    assert f"add about {100 - number} rows to the reference" in few
    enough = said(data(tmp_path, rows(*"ab" * 10), rows(*"ab" * 100, first=100)))
    assert not any("judge candidates" in line for line in enough)
    lenient = Policy.model_validate({"data": {"min_judge_rows": 10}})
    assert len(describe(data(tmp_path, rows(*"ab" * 10), rows(*"ab" * 40, first=100)), Settings(), lenient)) == 4


def test_how_the_base_model_reads_the_texts_is_said(tmp_path: Path) -> None:
    usual = said(data(tmp_path, rows(*"ab" * 10)))
    assert usual[1].startswith("tokens: median 5, 99 % of the texts below 5, longest 5; the base model reads 512; ")
    assert not any("tokens" in line for line in usual[2:])

    long = "text,label\n" + "".join(f"{'word ' * 300}{n},{'ab'[n % 2]}\n" for n in range(20))
    lines = said(data(tmp_path, long), Settings())
    [cut] = [line for line in lines if "more than 128 tokens" in line]
    assert cut.startswith(
        "warning: 100% of the texts have more than 128 tokens, and the model does not read the rest: raise "
    )
    assert "model.max_length, up to 512 (covering 99 % takes 320)" in cut
    longer = "text,label\n" + "".join(f"{'word ' * 600}{n},{'ab'[n % 2]}\n" for n in range(20))
    most = Settings(model=ModelSettings(max_length=512))
    assert any("longer context, of 608 tokens or more" in line for line in said(data(tmp_path, longer), most))

    chinese = "text,label\n" + "".join(f"作者对人物的描写也太肤浅 {n},{'ab'[n % 2]}\n" for n in range(20))
    [unknown] = [line for line in said(data(tmp_path, chinese)) if "unknown to the base model" in line]
    assert "model.base_model to a multilingual encoder" in unknown


def test_init_chooses_the_length_that_the_texts_need_unless_it_is_set(tmp_path: Path) -> None:
    def made(name: str, words: int, **model: object) -> int:
        text = "text,label\n" + "".join(f"{'word ' * words}{n},{'ab'[n % 2]}\n" for n in range(40))
        (tmp_path / "seed.csv").write_text(text, encoding="utf-8")
        overrides = {"model": model} if model else None
        return create_project(
            tmp_path / name, seed=tmp_path / "seed.csv", reference=None, overrides=overrides
        ).model.max_length

    assert made("short", 5) == 128
    assert made("long", 300) == 320
    assert made("longest", 900) == 512
    assert made("given", 300, max_length=64) == 64


def prompts(characters: int, answered: int) -> str:
    """Rows of prompts and answers of so many characters, each different."""
    sizes = {"prompt": characters, "completion": answered}
    rows = [{name: ("word-" * size)[: size - 3] + f"{n:03}" for name, size in sizes.items()} for n in range(40)]
    return "".join(json.dumps(row) + "\n" for row in rows)


def writing(path: Path, rows: str) -> ProjectData:
    (path / "seed.jsonl").write_text(rows, encoding="utf-8")
    return read_data(path / "seed.jsonl", None, "generation", Columns())


@pytest.mark.parametrize(
    ("characters", "answered", "reads", "chosen"),
    [
        (900, 2000, None, (256, 512)),  # about four characters a token, where no tokenizer can be read
        (50_000, 50_000, None, (2048, 2048)),
        (150, 170, 1024, (160, 192)),  # a token is a character
        (900, 170, 1024, (832, 192)),  # both fit into what the base model reads
        (900, 2000, 1024, (512, 512)),
    ],
)
def test_init_chooses_how_long_prompts_and_answers_may_be(
    tmp_path: Path, tiny_decoder: Path, characters: int, answered: int, reads: int | None, chosen: tuple[int, int]
) -> None:
    seed, base_model = tmp_path / "seed.jsonl", None
    seed.write_text(prompts(characters, answered), encoding="utf-8")
    if reads:
        base_model = str(shutil.copytree(tiny_decoder, tmp_path / "base"))
        for name, key in (("config", "max_position_embeddings"), ("tokenizer_config", "model_max_length")):
            file = tmp_path / "base" / f"{name}.json"
            file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | {key: reads}), encoding="utf-8")

    def made(name: str, **model: object) -> ModelSettings:
        values = {"model": model} if model else None
        folder = tmp_path / name
        return create_project(
            folder, seed=seed, reference=None, task="generation", base_model=base_model, overrides=values
        ).model

    model = made("chosen")
    assert (model.max_length, model.max_new_tokens) == chosen
    given = made("given", max_length=64)
    assert (given.max_length, given.max_new_tokens) == (64, chosen[1])


def test_answers_and_prompts_that_are_cut_are_warned_of(tmp_path: Path, tiny_decoder: Path) -> None:
    def cut(rows: str, **model: object) -> list[str]:
        settings = Settings(model=ModelSettings.model_validate({"task": "generation", **model}))
        return [line for line in said(writing(tmp_path, rows), settings) if "have more than" in line]

    long, counted = prompts(900, 2000), "(counted as 4 characters each), and the rest is cut: raise"
    assert cut(long) == [
        f"warning: about 100% of the prompts have more than 128 tokens {counted} model.max_length (covering 99 % takes 256)",
        f"warning: about 100% of the answers have more than 128 tokens {counted} model.max_new_tokens (covering 99 % takes 512)",
    ]
    assert cut(long, max_length=256, max_new_tokens=512) == []
    tiny = str(tiny_decoder)
    assert cut(prompts(40, 170), base_model=tiny) == [
        "warning: 100% of the answers have more than 128 tokens, and the rest is cut: raise model.max_new_tokens (covering 99 % "
        "takes 192)"
    ]
    [measured] = cut(prompts(150, 40), base_model=tiny)
    assert measured.startswith(
        "warning: 100% of the texts have more than 128 tokens, and the model does not read the rest"
    )
    assert cut(prompts(40, 40)) == cut(prompts(40, 40), base_model=tiny) == []


@pytest.mark.parametrize(
    ("seed", "reference", "message"),
    [
        (rows("a", "a"), None, "column label holds a alone; training needs at least two different values"),
        (
            rows("a", "b"),
            rows("a", "b"),
            "every text of the seed .* is in the reference .* too, whose rows never",
        ),
        (rows("a", "b"), rows("b", "a", "a"), "every text of the seed .* is in the reference"),
        (rows("a", "b", "b"), rows("a"), "holds b alone, apart from the texts that are in the reference too"),
    ],
)
def test_files_that_nothing_can_be_learned_from_are_refused(
    tmp_path: Path, seed: str, reference: str | None, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        check(data(tmp_path, seed, reference))


def test_a_project_keeps_its_columns_and_its_folder_of_rows(tmp_path: Path) -> None:
    (tmp_path / "clone" / "data").mkdir(parents=True)
    (tmp_path / "clone" / "notes.txt").write_text("no rows", encoding="utf-8")
    (tmp_path / "clone" / "data" / "train.jsonl").write_text(
        "".join(json.dumps({"body": f"text {n}", "kind": "ab"[n % 2]}) + "\n" for n in range(6)), encoding="utf-8"
    )
    lines: list[str] = []
    settings = create_project(
        tmp_path / "p",
        seed=tmp_path / "clone",
        reference=None,
        text_column="body",
        label_column="kind",
        say=lines.append,
    )
    assert lines[0].startswith("seed: 6 rows, from columns 'body' and 'kind'; 2 labels, the rarest: a 3, b 3")
    assert (settings.dataset.seed, settings.dataset.text_column, settings.dataset.label_column) == (
        "data/seed",
        "body",
        "kind",
    )
    assert (tmp_path / "p" / "data" / "seed" / "data" / "train.jsonl").is_file()
    assert not (tmp_path / "p" / "data" / "seed" / "notes.txt").exists()
    assert health(settings)[0] == "warn"
    registry = Registry("sqlite:///" + str(tmp_path / "other.db"), settings.model.name)
    registry.migrate()
    fill_taxonomy(settings, registry)
    assert [label.name for label in registry.labels()] == ["a", "b"]
    registry.close()


def test_a_seed_that_is_gone_fails_the_check_of_the_files(tmp_path: Path) -> None:
    settings = load_settings("", {}, root=tmp_path)
    verdict, sentence = health(settings)
    assert verdict == "FAIL"
    assert "seed.csv: No such file or directory" in sentence


def test_init_prints_what_it_understood(tmp_path: Path) -> None:
    (tmp_path / "seed.csv").write_text("body;kind\nhi;a\nbye;b\n", encoding="utf-8")
    options = ["--seed", str(tmp_path / "seed.csv"), "--text-column", "body", "--label-column", "kind"]
    done = CliRunner().invoke(cli, ["init", str(tmp_path / "p"), *options])
    assert done.exit_code == 0
    assert "seed: 2 rows, from columns 'body' and 'kind'; 2 labels, the rarest: a 1, b 1\n" in done.output
