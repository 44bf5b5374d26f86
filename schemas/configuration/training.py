"""The settings of a round's training: method, recipe, distilled student and resources."""

from typing import Literal

from pydantic import Field

from schemas.setting_groups import Group


class TrainingSettings(Group):
    """How a round trains."""

    method: Literal["lora", "head", "full"] = Field(
        "lora",
        description="what trains: lora (adapters and head), head (a probe on the frozen base model) or full (all layers)",
    )
    start: Literal["base", "champion"] = Field(
        "base",
        description="initial weights: the base model's, or the champion's adapter and head, with replay limited to "
        "`dataset.replay`",
    )
    seed: int = Field(13, description="random seed")
    epochs: int | None = Field(
        None,
        ge=0,
        description="maximum epochs; 0 trains the probe alone. Unset: 8; 4 with 4,000 rows or 75,000 tokens or more, or from "
        "the champion",
    )
    patience: int = Field(
        2,
        ge=1,
        description="epochs without a better validation loss before training stops; ignored when training from the champion",
    )
    refit_below: int | None = Field(
        1000,
        ge=0,
        description="below this many rows, retrain on all of them for the best number of epochs; above, keep the best "
        "checkpoint. Unset: always retrain, except from the champion",
    )
    batch_size: int = Field(32, ge=1, description="maximum rows of a step; small datasets use smaller batches")
    learning_rate: float | None = Field(
        None,
        gt=0,
        description="peak learning rate of all weights but the head. Unset: 1e-3 for lora, 1e-4 for full; 0.3 times that "
        "from the champion",
    )
    head_learning_rate: float = Field(1e-3, gt=0, description="peak learning rate of the head")
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="factor on the learning rate for each layer below the top one"
    )
    weight_decay: float = Field(0.01, ge=0, description="AdamW's weight decay on matrices, except the head's")
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="label smoothing: probability moved from the true label to the others"
    )
    warmup_share: float = Field(0.1, ge=0, lt=1, description="share of the steps in which the learning rate warms up")
    schedule: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="learning-rate schedule after the warm-up"
    )
    base_dropout: bool = Field(
        True, description="use the base model's own dropout in layers that train and in those above"
    )
    focal_distillation: float = Field(
        0.0,
        ge=0,
        description="weight of a distillation loss towards the champion where it is right; it reduces negative flips. 0: off",
    )
    adapted_layers: int | None = Field(
        None,
        ge=1,
        description="number of top layers with adapters. Unset: all of an encoder, the upper half of a language model",
    )
    lora_rank: int | None = Field(None, ge=1, description="LoRA rank r. Unset: 16 in an encoder, 8 in a language model")
    lora_alpha: int | None = Field(None, ge=1, description="LoRA alpha; the scale is alpha / r. Unset: 2 r")
    lora_dropout: float = Field(0.05, ge=0, lt=1, description="dropout on adapter inputs")
    lora_targets: Literal["query-value", "attention", "all"] | None = Field(
        None,
        description="matrices with adapters: query and value, all of attention, or attention and feed-forward (all). "
        "Unset: all in an encoder, query-value in a language model",
    )
    label_names: bool = Field(
        True, description="add one training row for each label, made of its name: card_arrival, text 'card arrival'"
    )
    bf16: bool | None = Field(
        None, description="compute in bfloat16, with float32 weights. Unset: if the processor supports it"
    )
    probe_c: float | None = Field(
        None,
        gt=0,
        description="inverse regularisation of the logistic probe, on embeddings of length 20. Unset: chosen in each round by "
        "cross-validation",
    )
    tfidf: bool = Field(
        True,
        description="also fit logistic or ridge regression on TF-IDF of words and characters, and serve it where it beats the "
        "trained model on held-out rows; not for generation",
    )
    search: Literal["none", "optuna"] = Field(
        "none",
        description="optuna: before a round from the base model trains, a study on the validation rows chooses learning "
        "rate, LoRA rank, epochs, weight decay and adapted layers",
    )
    search_minutes: float = Field(10.0, gt=0, description="minutes that the study may take")
    search_trials: int = Field(20, ge=2, description="trials of the study at most; the first is the recipe itself")
    student_layers: int | None = Field(
        None,
        ge=1,
        description="layers of a distilled student, a candidate for the served artefact. Unset: all layers; a student is "
        "trained only if this or one of the two shares below makes it smaller",
    )
    student_heads: float = Field(
        1.0,
        gt=0,
        le=1,
        description="share of each layer's attention heads that the student keeps, the most important ones",
    )
    student_feed_forward: float = Field(
        1.0,
        gt=0,
        le=1,
        description="share of each layer's feed-forward units that the student keeps, the most important ones",
    )
    student_epochs: int = Field(
        6, ge=1, description="epochs of distillation; minutes for thousands of texts on two cores"
    )
    nice: int = Field(
        10, ge=0, le=19, description="niceness of a round's process; a higher value leaves serving more CPU"
    )
    threads: int | None = Field(None, ge=1, description="threads of torch. Unset: one for each core")
    reserve_mb: int = Field(
        256, ge=0, description="megabytes of disk that a round leaves free, so that feedback can be stored. 0: none"
    )
    mlflow_uri: str | None = Field(
        None, description="MLflow tracking server or database that rounds are logged to (extra `mlflow`). Unset: none"
    )

    @property
    def makes_student(self) -> bool:
        """Whether a round distils a student: one of its settings makes it smaller than the full model."""
        return self.student_layers is not None or min(self.student_heads, self.student_feed_forward) < 1
