"""Faces in groups (folders, people, tracks of a video), the group with the best face first."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sdd_fiqa.calibration import DECIMALS

Rows = npt.NDArray[np.intp]


class Groups:
    """The groups of all rows, in the order of their best scores.

    Attributes:
        word: what a group is, in the singular.
        names: (G,) of the groups; those without any score are last.
        place: (N,) the position in `names` of each row's group.
        scored: (G,) how many rows have a score.
        accepted: (G,) how many of these are accepted; None if no threshold was asked for.
        best: (G,) the highest score; -inf where there is none.
    """

    def __init__(
        self,
        groups: Sequence[str],
        word: str,
        scores: npt.NDArray[np.float64],
        accepted: npt.NDArray[np.bool_] | None,
    ) -> None:
        """Orders the groups.

        Args:
            groups: (N,) the name of each row's group; empty for rows that are in none.
            word: what a group is, in the singular.
            scores: (N,) not finite where there is none.
            accepted: (N,) or None.
        """
        numbers: dict[str, int] = {}
        ids = np.array([numbers.setdefault(name, len(numbers)) for name in groups], np.intp)
        # Scores compare as scores.csv shows them, so that its column `rank` agrees.
        self._scores = np.where(np.isfinite(scores), np.round(scores, DECIMALS), -np.inf)
        best = np.full(len(numbers), -np.inf)
        np.maximum.at(best, ids, self._scores)
        order = np.argsort(-best, kind="stable")
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        names = list(numbers)
        self.word = word
        self.names = [names[i] for i in order]
        self.best = best[order]
        self.place: Rows = place[ids]
        finite = np.isfinite(self._scores)
        self.scored = np.bincount(self.place[finite], minlength=len(names))
        self.accepted = None
        if accepted is not None:
            self.accepted = np.bincount(self.place[finite & accepted], minlength=len(names))

    def shown(self, most: int) -> Rows:
        """At most `most` rows with a score: group by group, the best first.

        Where there are more, the best of every group come first, then the second best, and so on.
        With more groups than that, those with the best faces are shown.
        """
        rows = np.lexsort((-self._scores, self.place))
        rows = rows[np.isfinite(self._scores[rows])]
        place = self.place[rows]
        depth = np.arange(len(rows)) - np.searchsorted(place, place)  # 0 is the best of its group
        kept = np.lexsort((-self._scores[rows], depth))[:most]
        return rows[np.sort(kept)]

    def lacking(self) -> list[int]:
        """The places of the groups without an accepted face; with no threshold, without a score."""
        good = self.scored if self.accepted is None else self.accepted
        return [int(place) for place in np.flatnonzero(good == 0) if self.names[place]]

    def title(self, place: int) -> str:
        """What the page calls a group."""
        return self.names[place] or f"no {self.word}"
