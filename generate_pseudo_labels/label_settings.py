"""The settings of the label step, and their ranges."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from common.cli import check_at_least
from sdd_fiqa.errors import UserError


@dataclass(frozen=True)
class LabelSettings:
    """What decides the labels. Each field is a flag of gen_pseudo_labels; its text is the help.

    Attributes:
        estimator: `sampled` is the published one; `exact` compares with everybody.
        fix_num: positives and negatives drawn for an image and repeat (sampled).
        repeats: how many times they are drawn (sampled).
        seed: random seed; the same seed gives the same labels.
        pool_size: negatives that represent all others where distributions overlap (exact).
        min_images_per_id: identities with fewer images get no labels.
        drop_top_percent: drop this share of the best labels, and normalise the rest again.
        exclude_mislabelled: give images that look mislabelled no label.
        level_identities: scale each identity's distances to one upper quartile, so that labels
            compare pictures and not people; for labels to train on (not in the paper).
        level_share: how far level_identities goes: 1 all the way, 0.5 half of it.
        label_power: raise labels, as shares of 100, to this power: above 1 spreads good pictures,
            below 1 bad ones; for labels to train on (not in the paper).
    """

    estimator: Literal["sampled", "exact"] = "sampled"
    fix_num: int = 24
    repeats: int = 12
    seed: int = 0
    pool_size: int = 1024
    min_images_per_id: int = 2
    drop_top_percent: float = 0.0
    exclude_mislabelled: bool = False
    level_identities: bool = False
    level_share: float = 1.0
    label_power: float = 1.0

    def check(self) -> None:
        """Raises UserError where a number is out of its range."""
        check_at_least(1, {"--fix-num": self.fix_num, "--repeats": self.repeats})
        check_at_least(1, {"--min-images-per-id": self.min_images_per_id})
        check_at_least(2, {"--pool-size": self.pool_size})
        check_at_least(0, {"--seed": self.seed})
        if not 0 <= self.drop_top_percent < 100:
            raise UserError(
                f"--drop-top-percent {self.drop_top_percent:g}: must be at least 0 and below 100"
            )
        if not 0 <= self.level_share <= 1:
            raise UserError(f"--level-share {self.level_share:g}: must be 0 to 1")
        if self.level_share != 1 and not self.level_identities:
            raise UserError("--level-share is a part of --level-identities; give both")
        if not 0 < self.label_power < math.inf:
            raise UserError(f"--label-power {self.label_power:g}: must be a number above 0")
