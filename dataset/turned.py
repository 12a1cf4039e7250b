"""Photos that lie on their side or upside down: seen turned, and scored so if that is better."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dataset.faces import Rows, Values
from dataset.photo_faces import PhotoFaces
from dataset.scores import Scores
from sdd_fiqa.turned import doubtful, leads

Score = Callable[[PhotoFaces, int], tuple[Scores, bool]]


def turn_photos(
    faces: PhotoFaces, scores: Scores, lowest: float, score: Score
) -> tuple[Scores, bool]:
    """Looks at doubtful photos again, turned; the rows of those that score higher are replaced.

    Doubtful are photos without a face, and those that `sdd_fiqa.turned` names. All others cost
    nothing.

    Args:
        faces: of the photos as they are, scored; their rows are changed.
        scores: of the rows.
        lowest: a score that hardly any upright face is below.
        score: scores the rows of some faces in a number of photos, as this function returns it.

    Returns:
        The scores of the rows, and whether Ctrl-C cut the looks short: then nothing is replaced.
    """
    photos = _doubtful(faces, scores.values, lowest)
    if not len(photos):
        return scores, False
    search = faces.aligner.search
    # One quick look at every turn; each has a row, of the largest face.
    looks = faces.again(photos, lambda _, image: faces.aligner.search_turned(image), False, "looks")
    seen, interrupted = score(looks, len(photos))
    rows = _better(looks, seen.values, faces, scores.values)
    if faces.all_faces and len(rows) and not interrupted:
        photos = looks.kept["photo"][rows]
        turns = dict(zip(photos.tolist(), looks.kept["place"][rows, -1].astype(int), strict=True))
        looks = faces.again(
            photos, lambda row, image: [search(image, True, int(turns[row]))], True, "turned"
        )
        seen, interrupted = score(looks, len(rows))
        rows = np.flatnonzero(looks.kept["number"])
    if interrupted or not len(rows):
        return scores, interrupted
    source = faces.replace(looks, rows)
    reasons = {**scores.reasons, **{len(scores.values) + i: why for i, why in seen.reasons.items()}}
    return Scores(
        np.concatenate([scores.values, seen.values])[source],
        {row: reasons[old] for row, old in enumerate(source.tolist()) if old in reasons},
    ), False


def _doubtful(faces: PhotoFaces, scores: Values, lowest: float) -> Rows:
    """The rows of the list whose photos may lie on their side or upside down, rising."""
    odd = doubtful(faces.kept["place"][:, 4:14].reshape(-1, 5, 2), scores, lowest)
    odd &= (faces.kept["number"] == 1) & ~np.isnan(scores)
    odd |= faces.kept["seen"] == 0
    return faces.listed(np.flatnonzero(odd & faces.stills()))  # not frames of videos


def _better(looks: PhotoFaces, scores: Values, faces: PhotoFaces, upright: Values) -> Rows:
    """For each photo that scores higher turned, the row of the turn that scores highest."""
    photo = looks.kept["photo"]
    first = np.flatnonzero(faces.kept["number"] <= 1)  # the row of each photo's largest face
    first = first[np.searchsorted(faces.kept["photo"][first], photo)]
    before = np.where(faces.kept["number"][first] == 1, upright[first], 0)
    ahead = np.flatnonzero(leads(scores, before))
    ahead = ahead[np.lexsort((-scores[ahead], photo[ahead]))]
    return ahead[np.unique(photo[ahead], return_index=True)[1]]
