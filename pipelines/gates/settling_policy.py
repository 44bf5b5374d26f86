"""The policy of settling: which share of alpha labels may spend, and how.

Turns the table `[settling]` of policy.toml into a `SettlingPolicy`, for policy.py and settling.py.
"""

from pydantic import BaseModel, ConfigDict, Field

from pipelines.gates.alpha_spending import LABELS

TEMPLATE = """
[settling]
# A round that is short of evidence waits for labels on texts on which champion and candidate disagree.
enabled = true
# The share of superiority.alpha that labels may spend; the reference set keeps the rest.
share = 0.35
# The largest number of labels that favour one of the two models. A larger number finds smaller gains.
max_labels = 120
# The level at which labels show harm, so that the candidate is rejected.
harm_alpha = 0.05
# Days after which the round ends without a verdict.
days = 14.0
"""


class SettlingPolicy(BaseModel):
    """How labels settle a round."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    enabled: bool = True
    share: float = Field(0.35, gt=0, lt=1)
    max_labels: int = Field(120, ge=10, le=1000)
    harm_alpha: float = Field(0.05, gt=0, lt=1)
    days: float = Field(14.0, gt=0)

    def alpha_at(self, look: int, alpha: float) -> float:
        """Return the level of the `look`-th judgement (from 1) against a champion; all levels add up to share * alpha."""
        return LABELS.share_at(look) * self.share * alpha
