"""Templates and groups against the plain definition, and as the command prints them."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import eval_edc
from dataset.lists import read_labelpath
from edc_faces import faces
from evaluation.edc.bootstrap import draws, ratio_interval
from evaluation.edc.curves import Rules
from evaluation.edc.gather import Notes
from evaluation.edc.groups import common_threshold, compare_groups, read_groups
from evaluation.edc.pairs import HeldPairs, all_pairs, listed_pairs, sampled_pairs, within
from evaluation.edc.study import error_versus_discard, study
from evaluation.edc.templates import PLAIN, compare_templates, read_templates, template_pairs
from sdd_fiqa.errors import UserError

IMAGES = 160


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """160 images of 20 people in two groups, two templates a person, a scorer; one stranger."""
    features, ids, quality = faces(IMAGES, 20, seed=3)
    np.save(tmp_path / "one.npy", features)
    paths = [f"faces/p {i:02d}/{row:03d}.png" for row, i in enumerate(ids)]
    named = list(zip(paths, ids.tolist(), quality.tolist(), strict=True))
    text = {
        "DATA.labelpath": "".join(f"{path}\t{i}\n" for path, i, _ in named),
        "good.csv": "path,score\n" + "".join(f"{path},{q + 1}\n" for path, _, q in named),
        "templates.txt": "x/y.png\t0_0\t0\n"
        + "".join(f"{path}\t{i}_{row % 2}\t{i}\n" for row, (path, i, _) in enumerate(named)),
        "groups.csv": "path;group\n" + "".join(f"{p};{'ab'[i % 2]}\n" for p, i, _ in named),
    }
    for name, content in text.items():
        (tmp_path / name).write_text(content)
    return tmp_path


def rate_at(fmr: float, genuine: list[float], impostors: list[float]) -> float:
    """FNMR at the threshold just above the (k+1)-th largest impostor, k = floor(fmr n)."""
    allowed = int(fmr * len(impostors) + 1e-9)
    threshold = sorted(impostors, reverse=True)[allowed]
    return float(np.mean([one <= threshold for one in genuine]))


@pytest.mark.parametrize("mean", [PLAIN, "good"])
def test_templates_equal_the_definition(folder: Path, mean: str) -> None:
    features, ids, quality = faces(IMAGES, 20, seed=3)
    images = read_labelpath(folder / "DATA.labelpath")[0]
    notes = Notes()
    templates = read_templates(folder / "templates.txt", images, np.ones(IMAGES, np.bool_), notes)
    assert notes == [f"left out: 1 image of {folder}/templates.txt not in {folder}/DATA.labelpath"]
    scores = {"good": quality + 1, "half": np.where(np.arange(IMAGES) == 3, np.nan, 1.0)}
    pairs = template_pairs(features, templates, scores, notes)
    assert "half weights no templates" in notes[-1] and list(pairs) == [PLAIN, "good"]
    found = compare_templates("r", pairs, [0.05, 0.002], 50, seed=1)

    members: dict[str, list[int]] = {}
    for row, i in enumerate(ids):
        members.setdefault(f"{i}_{row % 2}", []).append(row)
    vectors = {}
    for name, rows in members.items():
        weights = np.ones(len(rows)) if mean == PLAIN else quality[rows] + 1
        total = sum(w * features[row].astype(float) for w, row in zip(weights, rows, strict=True))
        vectors[name] = total / np.linalg.norm(total)
    genuine: list[float] = []
    impostors: list[float] = []
    for one, other in combinations(vectors, 2):
        same = one.split("_")[0] == other.split("_")[0]
        (genuine if same else impostors).append(float(vectors[one] @ vectors[other]))
    for result in found:
        if result.mean == mean:
            fnmr = rate_at(result.fmr, genuine, impostors)
            assert result.tar == pytest.approx(1 - fnmr)
            assert result.genuine == len(genuine)
            assert result.errors == round(fnmr * len(genuine))
            assert result.ends[0] <= result.tar <= result.ends[1]
    by_key = {(result.fmr, result.mean): result for result in found}
    for result in found:
        assert result.gain == pytest.approx(result.tar - by_key[result.fmr, PLAIN].tar)
        assert result.mean != PLAIN or (result.gain, *result.gain_ends) == (0, 0, 0)


def test_templates_of_several_identities_are_noted(folder: Path) -> None:
    images = read_labelpath(folder / "DATA.labelpath")[0]
    first, *_, last = (path.rpartition("/")[2] for path in images.paths())
    (folder / "t.txt").write_text(f"{first}\tt\tx\n{last}\tt\tx\n{last}\tu\tx\n")
    read_templates(folder / "t.txt", images, np.ones(IMAGES, np.bool_), notes := Notes())
    assert notes == [f"several identities of {images.file} in 1 template of {folder / 't.txt'}"]


def test_weights_below_zero_are_shifted_and_all_zero_is_the_plain_mean(folder: Path) -> None:
    features = faces(IMAGES, 20, seed=3)[0]
    images = read_labelpath(folder / "DATA.labelpath")[0]
    notes = Notes()
    templates = read_templates(folder / "templates.txt", images, np.ones(IMAGES, np.bool_), notes)
    rising = np.arange(float(IMAGES))
    scores = {"zero": 0 * rising, "low": rising - 50, "high": rising}
    pairs = template_pairs(features, templates, scores, notes)
    similarity = {name: source.genuine.similarity for name, source in pairs.items()}
    np.testing.assert_allclose(similarity["zero"], similarity[PLAIN], atol=1e-6)
    np.testing.assert_array_equal(similarity["low"], similarity["high"])
    assert notes[-1] == "low has scores below 0: as weights they are shifted to start at 0"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a b\n", r":1: expected `path template person`"),
        ("000.png\tt\tx\n001.png\tt\ty\n", r":2: template t is of x and of y"),
        ("000.png\tt\tx\n000.png\tt\tx\n", r":2: 000.png is in template t twice"),
        ("000.png\tt\tx\n", r"has 1 template with a usable image; 2 are needed"),
    ],
)
def test_bad_templates_are_named(folder: Path, text: str, message: str) -> None:
    (folder / "t.txt").write_text(text)
    images = read_labelpath(folder / "DATA.labelpath")[0]
    with pytest.raises(UserError, match=message):
        read_templates(folder / "t.txt", images, np.ones(IMAGES, np.bool_), Notes())


def mixed(ids: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """A group that parts people: pairs with one image in it belong to no group."""
    return np.asarray((ids % 2 == 0) ^ (np.arange(len(ids)) % 7 == 0))


@pytest.mark.parametrize("parted", [False, True])
def test_groups_equal_the_definition(parted: bool) -> None:
    features, ids, quality = faces(IMAGES, 20, seed=3)
    source = all_pairs(features, ids)
    rules = Rules("recomputed", "images")
    (whole,) = study("r", source, {"q": quality}, [0.1], [rules])
    groups = {"a": mixed(ids) if parted else ids % 2 == 0}
    (found,) = compare_groups(source, quality, whole, groups, 60, seed=5)
    images = groups["a"]
    similarity = features @ features.T
    decision = whole.curve.thresholds[0]
    threshold, share = common_threshold(whole)
    assert share == np.mean(quality < threshold) == pytest.approx(0.1, abs=0.01)
    inside = [pair for pair in combinations(range(IMAGES), 2) if images[list(pair)].all()]
    genuine = [(a, b) for a, b in inside if ids[a] == ids[b]]
    fails = [pair for pair in genuine if similarity[pair] < decision]
    assert (found.images, found.errors) == (images.sum(), len(fails))
    assert found.fnmr == pytest.approx(len(fails) / len(genuine))
    assert found.discarded == pytest.approx(np.mean(quality[images] < threshold))
    alone = error_versus_discard(features[images], ids[images], quality[images], 0.1)
    np.testing.assert_equal(found.aoc, alone.areas["aoc"])
    people = np.unique(ids[images])
    weights = draws(len(people), 0, 60, seed=5)
    of = np.array([[np.sum(ids[[a for a, _ in s]] == i) for i in people] for s in (fails, genuine)])
    ratios = (weights @ of[0]) / (weights @ of[1])
    assert found.intervals["fnmr"] == pytest.approx(tuple(np.quantile(ratios, [0.025, 0.975])))


def test_one_identity_has_no_interval() -> None:
    counts = np.array([1, 2])
    assert np.isnan(ratio_interval(counts[:1], counts[:1] + 1, 50)).all()
    assert np.isfinite(ratio_interval(counts, counts + 1, 50)).all()


def test_pairs_within_some_images_are_theirs() -> None:
    features, ids, _ = faces(80, 10, seed=4)
    some = np.arange(80) % 3 > 0
    whole, alone = all_pairs(features, ids), all_pairs(features[some], ids[some])
    part = within(whole, some)
    assert part.impostors == alone.impostors
    np.testing.assert_array_equal(part.genuine.similarity, alone.genuine.similarity)
    first, second = (side.astype(np.int32) for side in np.triu_indices(80, 1))
    listed = within(listed_pairs(features, ids, first, second, ids[first] == ids[second]), some)
    assert listed.impostors == alone.impostors and not listed.sampled
    order = np.argsort(listed.genuine.similarity), np.argsort(alone.genuine.similarity)
    np.testing.assert_allclose(
        listed.genuine.similarity[order[0]], alone.genuine.similarity[order[1]], atol=1e-6
    )
    drawn = within(sampled_pairs(features, ids, 5000), some)
    assert isinstance(drawn, HeldPairs) and drawn.sampled
    assert np.all(drawn.identities[drawn.listed.first] != drawn.identities[drawn.listed.second])


def test_an_image_of_two_groups_is_refused(folder: Path) -> None:
    images = read_labelpath(folder / "DATA.labelpath")[0]
    everyone = np.ones(IMAGES, np.bool_)
    (folder / "g.txt").write_text("000.png a\n000.png b\n")
    with pytest.raises(UserError, match=r"g\.txt:2: 000\.png is in a and in b"):
        read_groups(folder / "g.txt", images, everyone, Notes())
    (folder / "g.txt").write_text("image,sex\n000.png,a\n001.png,b\nno.png,a\n")
    notes = Notes()
    groups = read_groups(folder / "g.txt", images, everyone, notes)
    assert {name: int(mask.sum()) for name, mask in groups.items()} == {"a": 1, "b": 1}
    assert notes[0] == f"1 image of {folder / 'g.txt'} not in {images.file}"
    (folder / "g.txt").write_text("000.png\ta\tx y\n")
    with pytest.raises(UserError, match=r"g\.txt:1: expected `path group`"):
        read_groups(folder / "g.txt", images, everyone, Notes())
    (folder / "g.txt").write_text("no.png a\n")
    with pytest.raises(UserError, match=r"none of its images is in .*, for example no\.png"):
        read_groups(folder / "g.txt", images, everyone, Notes())
    (folder / "g.txt").write_text("000.png a\n")
    with pytest.raises(UserError, match="names none of the images that are evaluated"):
        read_groups(folder / "g.txt", images, np.arange(IMAGES) > 0, Notes())
    (folder / "g.txt").write_text("path group\n")
    with pytest.raises(UserError, match=r"g\.txt: has a header line alone"):
        read_groups(folder / "g.txt", images, everyone, Notes())


def test_the_command_prints_templates_and_groups(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    settings = eval_edc.Settings(
        feats=(Path("one.npy"),),
        image_list=Path("DATA.labelpath"),
        scores=(Path("good.csv"),),
        fmr=(0.05,),
        bootstrap=40,
        templates=Path("templates.txt"),
        group=Path("groups.csv"),
    )
    monkeypatch.setattr(eval_edc, "plot_curves", lambda *_: None)
    assert eval_edc.main(settings) == 3  # one image of the templates is not in the list
    shown = capsys.readouterr().out
    rows = [line.split("|")[1:-1] for line in shown.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in row] for row in rows]
    assert {row[0] for row in cells if len(row) == 6} >= {"a", "b"}
    assert [row[1] for row in cells if row[0] == "0.05" and row[1][0] in "pg"] == [PLAIN, "good"]
    assert all(len(line) <= 100 for line in shown.splitlines() if line.startswith("|"))
    content = json.loads((folder / "edc/results.json").read_text())
    assert [one["group"] for one in content["groups"]] == ["a", "b"]
    assert [one["mean"] for one in content["templates"]] == [PLAIN, "good"]
    with pytest.raises(UserError, match=r"impostor pairs of templates .\d+.; use ") as error:
        eval_edc.main(replace(settings, fmr=(1e-4,)))
    fmr = float(str(error.value).split()[-1])
    assert eval_edc.main(replace(settings, fmr=(fmr,))) == 3
