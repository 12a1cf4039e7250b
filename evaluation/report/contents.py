"""What the report page shows: faces with their scores, their photos, and their groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from evaluation.report.histogram import decimals_for
from sdd_fiqa.calibration import DECIMALS, percentiles_of, reaches
from sdd_fiqa.images import Image

Rows = npt.NDArray[np.intp]
Scores = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

# At about 3 kB a face, 2,000 make a page of about 8 MB, which opens in a second or two. An even
# sample of more faces shows the same order.
MAX_FACES = 2000


@dataclass(frozen=True)
class Report:
    """What the page shows: N rows, each a face or an image.

    Attributes:
        scores: (N,) float64, higher is better; NaN where a row has no score.
        statuses: (N,) "ok", or why there is no score.
        path_of: row -> path; it may hold anything that a file name may.
        link_path: row -> the file that a face links to, relative to the current folder; None if
            there is none (a container).
        thumbnail: row -> JPEG bytes of about 112x112 pixels; None if there is no picture. Called
            for the rows shown only, in the order of the page.
        model_name: as the reader knows it.
        command: the command line that made the page; shown as it is.
        made: when the page was made.
        model_about: a few words about the model, such as "the model that comes with SDD-FIQA".
        kind: what a row is; several faces may be of one image.
        calibration: of the model, from faces held out of its training; None if it has none:
            `thresholds`: list of {`discard`: share in 0..1, `score`: the score below which that
            share of the calibration faces lies, `fnmr`: the FNMR that is left (optional)};
            `percentiles`: 101 rising scores, of the percentiles 0..100;
            `faces` (optional): how many faces it was made on; `fmr` (optional): the FMR of `fnmr`.
        threshold: the lowest score of an accepted face; None if none was asked for. With one, the
            page opens with the accepted faces.
        accept: the share of calibration faces, in 0..1, that reach `threshold`.
        group_names: (N,) the group of each row, empty for a row that is in none; None: no groups.
        group_word: what a group is, in the singular: "folder", "track".
        places: where the faces are in their photos; photos with several faces are shown with boxes.
        max_faces: the most faces on the page, at least 2.
    """

    scores: Scores
    statuses: Sequence[str]
    path_of: Callable[[int], str]
    link_path: Callable[[int], str | None]
    thumbnail: Callable[[int], bytes | None]
    model_name: str
    command: str
    made: datetime
    model_about: str = ""
    kind: Literal["image", "face"] = "image"
    calibration: Mapping[str, Any] | None = None
    threshold: float | None = None
    accept: float | None = None
    group_names: Sequence[str] | None = None
    group_word: str = "folder"
    places: FacePlaces | None = None
    max_faces: int = MAX_FACES

    @cached_property
    def known(self) -> Scores:
        """The scores of the rows that have one."""
        return self.scores[np.isfinite(self.scores)]

    @cached_property
    def unscored(self) -> list[int]:
        """The rows without a score."""
        rows: list[int] = np.flatnonzero(~np.isfinite(self.scores)).tolist()
        return rows

    @cached_property
    def accepted(self) -> Mask | None:
        """(N,) whether each row reaches the threshold; None if none was asked for."""
        if self.threshold is None:
            return None
        return np.isfinite(self.scores) & reaches(self.scores, self.threshold)

    @cached_property
    def decimals(self) -> int:
        """The decimals of a score as shown."""
        return decimals_for(self.known) if len(self.known) else 1

    @cached_property
    def groups(self) -> Groups | None:
        """The groups of all rows, in the order of their best scores."""
        if self.group_names is None:
            return None
        return Groups(self.group_names, self.scores, self.accepted)

    @cached_property
    def percentiles(self) -> Scores | None:
        """(N,) the percent of the calibration faces that score lower; None if unknown."""
        return None if self.calibration is None else percentiles_of(self.scores, self.calibration)

    def percentile(self, row: int) -> str:
        """The percentile of a row in words; empty if it is unknown."""
        if self.percentiles is None:
            return ""
        return f"higher than {self.percentiles[row]:.0f} % of the calibration faces"


@dataclass(frozen=True)
class FacePlaces:
    """Where the faces of the rows are.

    Attributes:
        photo: (N,) whole numbers; rows of one photo have the same.
        faces: (N,) how many faces the row's photo shows, scored or not; NaN where unknown.
        boxes: (N, 4) x, y, width, height in pixels of the photo; NaN where there is no face.
        path: row -> the path of its photo.
        read: row -> its photo, (H, W, 3) uint8 RGB. It may raise UnreadableImage: such a photo is
            left out.
    """

    photo: npt.NDArray[np.int64]
    faces: npt.NDArray[np.float32]
    boxes: npt.NDArray[np.float32]
    path: Callable[[int], str]
    read: Callable[[int], Image]


class Groups:
    """The groups of all rows, named by row (empty: in none), in the order of their best scores.

    Attributes:
        names: (G,) of the groups; those without any score are last.
        place: (N,) the position in `names` of each row's group.
        scored: (G,) how many rows have a score.
        accepted: (G,) how many of these are accepted; None if no threshold was asked for.
        best: (G,) the highest score; -inf where there is none.
    """

    def __init__(self, groups: Sequence[str], scores: Scores, accepted: Mask | None) -> None:
        numbers: dict[str, int] = {}
        ids = np.array([numbers.setdefault(name, len(numbers)) for name in groups], np.intp)
        # Scores compare as scores.csv shows them, so that its column `rank` agrees.
        self._scores = np.where(np.isfinite(scores), np.round(scores, DECIMALS), -np.inf)
        best = np.full(len(numbers), -np.inf)
        np.maximum.at(best, ids, self._scores)
        order = np.argsort(-best, kind="stable")
        names = list(numbers)
        self.names = [names[i] for i in order]
        self.best = best[order]
        self.place: Rows = np.argsort(order)[ids]
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
