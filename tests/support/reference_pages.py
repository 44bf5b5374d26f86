"""Reference pages made from the code: docs/cli.md, http.md, events.md, metrics.md and policy.md.

Turns click's commands, the OpenAPI and AsyncAPI documents, the registries of metrics and the policy's template into Markdown.
`make docs` writes the pages; tests/test_docs.py compares them.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, get_args

import click
from prometheus_client import CollectorRegistry

from pipelines.gates.policy import default_policy
from schemas.configuration.serving import ServingSettings
from schemas.targets import Task
from services.cli.main import cli
from services.ingestion.metrics import ConsumerMetrics
from services.scheduling.metrics import SchedulerMetrics
from serving.http.metrics import Metrics
from serving.http.openapi.document import openapi_document
from tests.support.fakes import REPOSITORY

MADE = "Made by `make docs`; do not edit."


def pages() -> dict[str, str]:
    """Return each page's text by its name in docs/."""
    return {
        "cli.md": _cli(),
        "http.md": _http(),
        "events.md": _events(),
        "metrics.md": _metrics(),
        "policy.md": _policy(),
    }


def _table(*columns: str, rows: Iterable[tuple[str, ...]]) -> str:
    lines = [columns, ("---",) * len(columns), *rows]
    cells = [[cell.replace("\n", " ").replace("|", "\\|").replace("<", "&lt;") for cell in row] for row in lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _cli() -> str:
    head = f"# Commands\n\nEvery command but `init` and `demo` takes `-c FILE` after its name. {MADE}"
    return "\n\n".join([head, *_commands("ratchet", cli)]) + "\n"


def _commands(name: str, group: click.Group) -> Iterator[str]:
    for word, command in sorted(group.commands.items()):
        path = f"{name} {word}"
        if command.hidden:
            continue
        if isinstance(command, click.Group):
            yield from _commands(path, command)
            continue
        context = click.Context(command, info_name=path)
        parts = [
            f"## {path}",
            f"`{command.get_usage(context).removeprefix('Usage: ')}`",
            _paragraphs(command.help or ""),
        ]
        options = [
            (f"`{record[0]}`", record[1]) for option in command.params if (record := option.get_help_record(context))
        ]
        if options:
            parts.append(_table("option", "meaning", rows=options))
        yield "\n\n".join(parts)


def _paragraphs(text: str) -> str:
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


def _http() -> str:
    document = openapi_document("classification", ServingSettings())
    head = (
        "# HTTP API\n\nRoutes of a classification project. `/docs` shows the same with examples and schemas, for "
        f'the project\'s own task; `/openapi.json` is the document. Errors are `{{"error", "detail"}}`. {MADE}'
    )
    parts = [head]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            rows = [(f"`{status}`", _about(answer, document)) for status, answer in operation["responses"].items()]
            described = _paragraphs(str(operation.get("description") or operation.get("summary", "")))
            parts += [f"## {method.upper()} {path}", described, *_examples(operation)]
            if path == "/predict":
                parts.append(_table("option", "task", "meaning", rows=_options()))
            parts.append(_table("status", "meaning", rows=rows))
    return "\n\n".join(parts) + "\n"


def _examples(operation: Mapping[str, Any]) -> Iterator[str]:
    """Yield the document's examples of an operation's bodies, and of its answer."""
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    for name, example in body.get("examples", {}).items():
        yield f"Body, {name}:\n\n{_json(example['value'])}"
    for status, answer in operation["responses"].items():
        example = answer.get("content", {}).get("application/json", {}).get("example")
        if example is not None:
            yield f"Answer, {status}:\n\n{_json(example)}"


def _json(value: object) -> str:
    return f"```json\n{json.dumps(value, indent=2, ensure_ascii=False)}\n```"


def _options() -> Iterator[tuple[str, ...]]:
    """Yield each field of `options` of POST /predict with the tasks that know it."""
    tasks: dict[tuple[str, str], list[str]] = {}
    for task in get_args(Task):
        schemas = openapi_document(task, ServingSettings())["components"]["schemas"]
        for name, field in schemas["Options"]["properties"].items():
            tasks.setdefault((name, str(field.get("description", ""))), []).append(task)
    for (name, meaning), known in tasks.items():
        yield f"`options.{name}`", ", ".join(known), _paragraphs(meaning)


def _about(answer: Mapping[str, Any], document: Mapping[str, Any]) -> str:
    shared = document["components"]["responses"].get(answer.get("$ref", "").rpartition("/")[2], answer)
    return str(shared["description"])


def _events() -> str:
    document = json.loads((REPOSITORY / "schemas/json/asyncapi.json").read_text(encoding="utf-8"))
    head = (
        "# Events\n\nMessages of the topics, as CloudEvents in JSON. `schemas/json/asyncapi.json` is the document for producers "
        f"and code generators; [kafka.md](kafka.md) has the rules. {MADE}"
    )
    channels = [
        (f"`{channel['address']}`", ", ".join(sorted(channel["messages"])), _paragraphs(channel.get("description", "")))
        for channel in document["channels"].values()
    ]
    parts = [head, _table("topic", "messages", "what it holds", rows=channels)]
    for name, message in sorted(document["components"]["messages"].items()):
        key = message["bindings"]["kafka"]["key"]["description"]
        parts += [f"## {name}", *([message["description"]] if "description" in message else []), f"Key: {key}."]
        if headers := message.get("headers", {}).get("properties"):
            rows = [(f"`{header}`", str(about.get("description", ""))) for header, about in sorted(headers.items())]
            parts.append(_table("header", "meaning", rows=rows))
        if name := message["payload"].get("schema", {}).get("$ref"):
            schema = json.loads((REPOSITORY / "schemas/json" / name).read_text(encoding="utf-8"))
            parts.append(_table("field of `data`", "meaning", rows=_fields(schema)))
    return "\n\n".join(parts) + "\n"


def _fields(schema: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield each field of an event's data."""
    data = schema["properties"]["data"]
    data = schema["$defs"][data["$ref"].rpartition("/")[2]] if "$ref" in data else data
    for name, field in data["properties"].items():
        needed = "" if name in data.get("required", ()) else " (optional)"
        yield f"`{name}`{needed}", _paragraphs(str(field.get("description", "")))


def _metrics() -> str:
    head = (
        "# Metrics\n\nPrometheus metrics of each process; [operations.md](operations.md) says what to watch. Counters end in "
        f"`_total`. Serving also shows BentoML's own. {MADE}"
    )
    serving = CollectorRegistry()
    Metrics("m", serving)
    registries = {
        "Serving: `/metrics` of its port": serving,
        "Feedback consumer: `observability.consumer_port`, or `feature_store.metrics_port` on every interface": ConsumerMetrics(
            "m"
        ).registry,
        "Training scheduler: `observability.scheduler_port`": SchedulerMetrics("m", list).registry,
    }
    parts = [head]
    for title, registry in registries.items():
        rows = [(f"`{family.name}`", family.type, family.documentation) for family in registry.collect()]
        parts.append(f"## {title}\n\n{_table('metric', 'kind', 'meaning', rows=sorted(rows))}")
    return "\n\n".join(parts) + "\n"


def _policy() -> str:
    head = (
        "# Policy\n\nThe gates' thresholds, as `ratchet init` writes them into `policy.toml`, each with its reason. "
        f"[evidence.md](evidence.md) says what they promise. Every report shows the values that it was judged by. {MADE}"
    )
    parts = [head, f"Classification:\n\n```toml\n{default_policy('classification').strip()}\n```"]
    usual = set(default_policy("classification").splitlines())
    for task in get_args(Task)[1:]:
        table, values = "", []
        for line in default_policy(task).splitlines():
            table = line if line.startswith("[") else table
            if line not in usual and not line.startswith("#"):
                values.append(f"`{table[1:-1]}.{line}`")
        if values:
            parts.append(f"In {task} these differ: {', '.join(values)}.")
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    for name, text in pages().items():
        (REPOSITORY / "docs" / name).write_text(text, encoding="utf-8")
