"""How the report shows many scores: an even sample of faces, and every score in one bar."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.report.histogram import Mark, decimals_for, histogram, ticks_of
from evaluation.report.page import sample_ranks
from report_pages import bar_counts, jpeg, read, write


def counted(drawn: dict[str, Any]) -> list[int]:
    """How many images each bar of a histogram counts, as its title says."""
    return bar_counts(" ".join(bar["title"] for bar in drawn["bars"]))


@given(scores=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=200), most=st.integers(2, 50))
def test_a_sample_is_even_over_the_ranks_with_both_ends(scores: list[float], most: int) -> None:
    array = np.array(scores)
    chosen = sample_ranks(array, most)
    order = sorted(range(len(scores)), key=lambda row: -scores[row])
    ranks = np.array([order.index(row) for row in chosen])
    assert len(chosen) == min(most, len(scores))
    assert ranks[0] == 0 and ranks[-1] == len(scores) - 1
    gaps = np.diff(ranks)
    assert len(gaps) == 0 or (gaps.min() >= 1 and gaps.max() - gaps.min() <= 1)


def test_above_the_limit_the_page_shows_a_sample_and_counts_all(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(50, 15, 100_000)
    asked: list[int] = []
    named: list[int] = []

    def thumbnail(row: int) -> bytes:
        asked.append(row)
        return jpeg(row)

    def path(row: int) -> str:
        named.append(row)
        return f"{row}.jpg"

    page = read(
        write(
            tmp_path / "r.html",
            scores,
            path_of=path,
            link_path=lambda row: None,
            thumbnail=thumbnail,
            max_faces=100,
        )
    )
    order = np.argsort(-scores)
    assert len(page.faces) == len(asked) == len(named) == 100
    assert asked[0] == order[0] and asked[-1] == order[-1]
    assert "Shown: 100 of 100,000 scored faces, an even sample from the highest" in page.words
    data = json.loads(page.blocks["script"][1])
    assert data["sampled"] and sum(data["counts"]) == 100_000
    assert sum(bar_counts(page.words)) == 100_000
    assert page.blocks["dd"][-6:] == [
        f"{value:.1f}"
        for value in (
            *np.quantile(scores, [0, 0.05, 0.5]),
            scores.mean(),
            *np.quantile(scores, [0.95, 1]),
        )
    ]


@given(
    scores=st.lists(
        st.one_of(st.floats(-10, 110), st.floats(-1e12, 1e12), st.integers(0, 100)),
        min_size=1,
        max_size=300,
    ),
    mark=st.floats(-1e3, 1e3),
)
def test_every_score_is_in_one_bar(scores: list[float], mark: float) -> None:
    decimals = decimals_for(np.array(scores))
    ticks = ticks_of(np.array(scores), decimals)
    drawn = histogram(ticks, decimals, [Mark(mark, "<5 %>")])
    ranges = [(bar["low"], bar["high"]) for bar in drawn["bars"]]
    counts = counted(drawn)
    assert 1 <= len(ranges) <= 60
    assert counts == [int(np.sum((ticks >= a) & (ticks <= b))) for a, b in ranges]
    assert sum(counts) == len(scores)
    assert all(before[1] + 1 == after[0] for before, after in pairwise(ranges))
    places = [one["x"] for one in (*drawn["bars"], *drawn["ticks"], *drawn["marks"])]
    for place in (*places, drawn["bar_width"]):
        assert place.endswith("%") and -1e-9 <= float(place[:-1]) <= 100


def test_one_score_far_off_does_not_flatten_the_rest() -> None:
    scores = np.append(np.random.default_rng(0).normal(50, 10, 5000), 1e7)
    decimals = decimals_for(scores)
    counts = counted(histogram(ticks_of(scores, decimals), decimals))
    assert decimals == 1 and sum(count > 0 for count in counts) > 20


@pytest.mark.parametrize(
    ("low", "high", "decimals"),
    [(0, 100, 1), (30, 45, 1), (0, 1, 3), (0, 5000, 0), (63, 63, 1), (36, 37, 2), (0, 0, 1)],
)
def test_scores_are_shown_as_finely_as_they_differ(low: float, high: float, decimals: int) -> None:
    assert decimals_for(np.linspace(low, high, 1000)) == decimals


@given(shares=st.lists(st.floats(0, 100), min_size=1, max_size=8))
def test_on_a_narrow_screen_no_label_lies_on_another(shares: list[float]) -> None:
    marks = [Mark(share, f"{share:.3g} %") for share in shares]
    labels = histogram(np.arange(100, dtype=np.int64), 0, marks)["marks"]
    assert len(labels) == len(marks)
    spans = []
    for mark, label in zip(marks, labels, strict=True):
        letters = len(mark.label) * 7 / 280  # at 12 pixels a letter takes 7 at most, of 280
        left = float(label["x"].rstrip("%")) / 100 - letters * (label["anchor"] == "end")
        spans.append((label["label_y"], left, left + letters))
    for row, left, _ in spans:
        assert sum(other == row and start <= left < end for other, start, end in spans) == 1
