"""An adapter for apps that send TensorZero's feedback: boolean and float metrics, comments and demonstrations.

Turns the arguments of TensorZero's `feedback` call into Ratchet's kinds, and sends them with a `Client`. Source: TensorZero's
documentation, "POST /feedback" and "Metrics & Feedback". `inference_id` is the `prediction_id` of a prediction by Ratchet;
feedback on a whole episode has no counterpart here.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ratchet_client.client import Client
from ratchet_client.predictions import Feedback
from ratchet_client.wire import Kind, Value

Demonstration = Callable[[Any], str | float | Sequence[str]]


@dataclass(frozen=True)
class Metric:
    """A metric of tensorzero.toml.

    Attributes:
        type: `boolean` becomes a rating, `float` a score.
        optimize: `max`, or `min` if lower is better: ratings and scores are then turned around.
        lowest, highest: the range of a float, which is scaled to 0..1.

    """

    type: Literal["boolean", "float"]
    optimize: Literal["max", "min"] = "max"
    lowest: float = 0.0
    highest: float = 1.0


def feedback_of(
    metric_name: str, value: Any, metrics: Mapping[str, Metric], demonstration: Demonstration | None = None
) -> tuple[Kind, Value]:
    """Return Ratchet's kind and value of TensorZero's metric and value.

    Args:
        metric_name: `comment`, `demonstration` or the name of a metric.
        value: its value.
        metrics: the project's metrics by name.
        demonstration: turns a demonstration into a correction; `text_of` if None.

    Raises:
        ValueError: the metric is unknown, or the value is not of its type or outside its range.

    """
    if metric_name == "comment":
        return "comment", str(value)
    if metric_name == "demonstration":
        return "correction", (demonstration or text_of)(value)
    if metric_name not in metrics:
        known = ", ".join(sorted(metrics)) or "none"
        raise ValueError(f"metric_name: {metric_name!r} is unknown, expected comment, demonstration or one of: {known}")
    metric = metrics[metric_name]
    if metric.type == "boolean":
        if not isinstance(value, bool):
            raise ValueError(f"{metric_name}: expected true or false, got {value!r}")
        return "rating", "up" if value == (metric.optimize == "max") else "down"
    if isinstance(value, bool) or not isinstance(value, int | float) or not metric.lowest <= value <= metric.highest:
        raise ValueError(
            f"{metric_name}: expected a number from {metric.lowest:g} to {metric.highest:g}, got {value!r}"
        )
    share = (value - metric.lowest) / (metric.highest - metric.lowest)
    return "score", share if metric.optimize == "max" else 1 - share


def text_of(value: Any) -> str:
    """Return a demonstration as a text: a string, the text of content blocks, or the JSON of an object."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        texts = [block.get("text") if isinstance(block, Mapping) else None for block in value]
        if texts and all(isinstance(text, str) for text in texts):
            return "\n".join(str(text) for text in texts)
        raise ValueError("demonstration: expected content blocks of type text; a tool call has no counterpart")
    return json.dumps(value, ensure_ascii=False)


class TensorZeroFeedback:
    """The `feedback` method of a TensorZero gateway, sent to Ratchet.

    Args:
        client: Ratchet's client.
        metrics: the metrics of tensorzero.toml by name.
        demonstration: turns a demonstration into a correction, such as `lambda value: value["label"]`.
        user_tag: the tag that names the person.

    """

    def __init__(
        self,
        client: Client,
        metrics: Mapping[str, Metric],
        *,
        demonstration: Demonstration | None = None,
        user_tag: str = "user_id",
    ) -> None:
        self._client, self._metrics = client, metrics
        self._demonstration, self._user_tag = demonstration, user_tag

    def feedback(
        self,
        *,
        metric_name: str,
        value: Any,
        inference_id: str | None = None,
        episode_id: str | None = None,
        tags: Mapping[str, str] | None = None,
        dryrun: bool = False,
    ) -> Feedback | None:
        """Send the feedback and return its receipt; with `dryrun` check it alone and return None.

        Raises:
            ValueError: the metric, its value or the id has no counterpart.
            RatchetError: see `Client.correct`.

        """
        kind, sent = feedback_of(metric_name, value, self._metrics, self._demonstration)
        if inference_id is None:
            episode = f" (got episode_id {episode_id})" if episode_id else ""
            raise ValueError(f"inference_id: needed{episode}, Ratchet's feedback is about one prediction")
        if dryrun:
            return None
        return self._client.send(str(inference_id), kind, sent, user=(tags or {}).get(self._user_tag))
