"""eval_edc.py as people and programs call it."""

from __future__ import annotations

import csv
import json
import re
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest

import eval_edc
from edc_faces import FOUR, faces
from evaluation.edc.curves import Rules
from evaluation.edc.pairs import all_pairs
from evaluation.edc.plots import line_style, plot_curves
from evaluation.edc.references import laplacian_variance, random_scores
from evaluation.edc.results import show, title
from evaluation.edc.study import PROTOCOLS, study
from sdd_fiqa.errors import UserError

Run = Callable[..., subprocess.CompletedProcess[str]]
IMAGES, IDENTITIES = 240, 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A list, embeddings of two recognisers, two scorers, a pair list; faces of known quality."""
    base = tmp_path_factory.mktemp("edc")
    generator = np.random.default_rng(0)
    ids = np.arange(IMAGES) % IDENTITIES
    noise = generator.uniform(0.3, 2.2, size=IMAGES)
    centres = generator.normal(size=(IDENTITIES, 32))
    for name in ("one", "two"):
        (base / name).mkdir()
        features = centres[ids] + noise[:, None] * generator.normal(size=(IMAGES, 32))
        norms = np.linalg.norm(features, axis=1)
        np.save(base / name / "Embedding_Features.npy", (features / norms[:, None]).astype("f2"))
        np.save(base / name / "Embedding_Norms.npy", norms.astype("f4"))
    paths = [f"faces/p{ids[row]:02d}/p{ids[row]:02d}_{row:04d}.png" for row in range(IMAGES)]
    lines = "".join(f"{path}\t{i}\n" for path, i in zip(paths, ids, strict=True))
    (base / "DATA.labelpath").write_text(lines)
    rows = "".join(f"{path},{-n:.6f},ok\n" for path, n in zip(paths, noise, strict=True))
    (base / "good.csv").write_text("path,score,status\n" + rows)
    (base / "random.txt").write_text(f"{paths[0]}\t1\n")
    (base / "flat.txt").write_text("".join(f"{path}\t1\n" for path in paths))
    pairs = [f"{paths[i]} {paths[(i + 1) % IMAGES]} 0\n" for i in range(IMAGES)]
    pairs += [f"{paths[i]} {paths[(i + IDENTITIES) % IMAGES]} 1\n" for i in range(IMAGES)]
    (base / "pairs.txt").write_text("".join(pairs))
    for row, path in enumerate(paths[:4]):
        (base / path).parent.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, size=(112, 112, 3)).astype(np.uint8)
        cv2.imwrite(str(base / path), cv2.GaussianBlur(pixels, (0, 0), 0.5 + row))
    return base


@pytest.fixture
def run(run_script: Run, folder: Path) -> Run:
    """Runs the evaluator over the list of the folder."""
    return partial(run_script, "eval_edc.py", "--image-list", "DATA.labelpath", cwd=folder)


def call(folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: object) -> int:
    """Calls it in this process, without the figure, which takes longer than all the rest."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(eval_edc, "plot_curves", lambda *_: None)
    given: dict[str, object] = {
        "feats": (Path("one/Embedding_Features.npy"),),
        "image_list": Path("DATA.labelpath"),
        "scores": (Path("good.csv"),),
        "fmr": (0.01,),
        "out_dir": Path("out"),
    }
    return eval_edc.main(eval_edc.Settings(**(given | settings)))  # type: ignore[arg-type]


def test_one_call_gives_table_figure_and_calibration(folder: Path, run: Run) -> None:
    done = run(
        *("--scores", "good.csv", "flat.txt", "--reference", "random", "norm"),
        *("--feats", "one/Embedding_Features.npy", "two/Embedding_Features.npy"),
        *("--fmr", "1e-2", "1e-3", "--threshold-at", "recomputed", "fixed"),
        *("--discard", "images", "--bootstrap", "50", "--out-dir", "all"),
    )
    assert done.returncode == 0, done.stderr
    out = folder / "all"
    assert done.stdout.rstrip("\n") == (out / "results.md").read_text().rstrip("\n")
    assert "all 600 genuine and all 28,080 impostor pairs" in done.stdout
    assert "- flat gives every image the same score: nothing can be discarded" in done.stdout
    with open(out / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 5 * 2 * 2  # recognisers, scorers (two norms), FMRs, rules
    assert {row["scorer"] for row in rows} == {"good", "flat", "random", "norm (one)", "norm (two)"}
    for row in rows:
        if row["scorer"] == "flat" and row["refused"] == "":
            assert float(row["aoc"]) == pytest.approx(0.05)
        if row["scorer"] == "good" and row["fmr"] == "0.01":
            assert float(row["aoc_low"]) < float(row["aoc"]) < float(row["aoc_high"])
    content = json.loads((out / "results.json").read_text())
    assert len(content["cells"]) == len(rows)
    assert content["cells"][0]["curve"]["shares"][0] == 0
    assert any(one["told_apart"] for one in content["differences"])
    shown = done.stdout.splitlines()
    good = next(line for line in shown if "| good " in line)
    assert good.split("|")[-2].strip() == "" and "like #: " in done.stdout
    assert all(len(line) <= 100 for line in shown if line.startswith("|"))
    calibration = json.loads((out / "calibration.json").read_text())
    assert calibration["fmr"] == 1e-3 and calibration["recogniser"] == "one"
    assert len(calibration["shares"]) == len(calibration["thresholds"]) == len(calibration["fnmr"])
    assert calibration["thresholds"] == sorted(calibration["thresholds"])
    assert json.loads((out / "calibration_flat.json").read_text())["shares"] == [0.0]
    figure = cv2.imread(str(out / "edc.png"))
    assert figure is not None and figure.shape[1] > 1000


def test_the_rules_are_every_pair_of_the_flags() -> None:
    settings = eval_edc.Settings(
        feats=(),
        image_list=Path("a"),
        threshold_at=("recomputed", "fixed", "fixed"),
        discard=("images", "pairs"),
    )
    assert sorted(eval_edc.choose_rules(settings)[0]) == sorted(FOUR)


def test_exit_codes_and_messages(run: Run) -> None:
    missing = run("--scores", "none.csv", "--feats", "one/Embedding_Features.npy")
    assert missing.returncode == 1 and missing.stdout == ""
    assert missing.stderr == "error: none.csv: cannot be read (No such file or directory)\n"
    wrong = run("--scores", "good.csv", "--feats", "x.npy", "--protocol", "mine")
    assert wrong.returncode == 2 and "sdd-fiqa" in wrong.stderr


def test_scores_that_miss_images_are_counted(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (folder / "good.csv").read_text().splitlines()
    lines[1] = lines[1].split(",")[0] + ",,unreadable"
    (folder / "part.csv").write_text("\n".join(lines[:-3]) + "\n")
    assert call(folder, monkeypatch, scores=(Path("part.csv"),)) == 3
    shown = capsys.readouterr().out
    assert "left out: 3 of 240 images not in part.csv" in shown
    assert "left out: 1 of 240 images without a score in part.csv" in shown
    assert "- 236 images of 40 identities" in shown


@pytest.mark.parametrize("protocol", list(PROTOCOLS))
def test_protocols(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    protocol: str,
) -> None:
    assert call(folder, monkeypatch, protocol=protocol, bootstrap=20) == 0
    shown = capsys.readouterr().out
    threshold, discard, area = PROTOCOLS[protocol]
    assert f"## one: threshold {threshold}, {discard} discarded" in shown
    assert f"| {title(area)} " in shown  # the area by which it compares
    rest = (folder / "out/results.json").read_text()
    assert ("best_line_0.3" in rest) == (protocol == "iso")


def test_pair_list_sample_and_views(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(folder, monkeypatch, pairs=Path("pairs.txt"), fmr=(0.1,)) == 0
    shown = capsys.readouterr().out
    assert "the list's 240 genuine and the list's 240 impostor pairs" in shown
    assert call(folder, monkeypatch, impostor_pairs=5000, seed=4) == 0
    assert (
        "a SAMPLE of 5,000 impostor pairs, drawn with replacement, seed 4"
        in capsys.readouterr().out
    )
    (folder / "names.txt").write_text("p00_0000\np01_0001\n")
    assert call(folder, monkeypatch, exclude=Path("names.txt"), max_images_per_id=3) == 0
    shown = capsys.readouterr().out
    assert "view: without the 2 images of names.txt" in shown
    assert "view: at most 3 images an identity, drawn with seed 0" in shown
    assert "- 120 images of 40 identities" in shown
    # What was asked for is a view, not an input that was skipped: exit code 0.
    assert call(folder, monkeypatch, pairs=Path("pairs.txt"), exclude=Path("names.txt")) == 0
    shown = capsys.readouterr().out
    assert "view: without 7 pairs of pairs.txt for that" in shown and "left out" not in shown


def test_unreachable_and_unreliable_cells_say_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call(folder, monkeypatch, fmr=(0.5, 1e-3), bootstrap=20)
    shown = capsys.readouterr().out
    found = re.search(r"- one, .* impostor pairs for FMR 0\.001 beyond 8\d % .*; use (\S+)", shown)
    assert found, shown
    row = next(line for line in shown.splitlines() if line.startswith("| 0.001 |"))
    assert row.split("|")[6].strip().startswith("pAUC(.2) ")
    assert "* fewer than 30 genuine errors at no discard" in shown
    with open(folder / "out" / "results.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["aoc"] == "" for line in lines] == [False, True]
    curves = [
        cell["curve"] for cell in json.loads((folder / "out/results.json").read_text())["cells"]
    ]
    for curve in curves:
        assert [error is None for error in curve["errors"]] == [f is None for f in curve["fnmr"]]
    assert None in curves[1]["errors"]
    call(folder, monkeypatch, fmr=(float(found[1]),))
    assert "too few impostor pairs" not in capsys.readouterr().out


def test_an_fmr_that_the_pairs_cannot_show_is_refused_if_typed_and_else_dropped(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=r"too few impostor pairs .28,080.; use ") as error:
        call(folder, monkeypatch, fmr=(1e-2, 1e-6))
    assert call(folder, monkeypatch, fmr=(float(str(error.value).split()[-1]),)) == 0
    capsys.readouterr()
    assert call(folder, monkeypatch, fmr=(), impostor_pairs=500) == 0
    shown = capsys.readouterr().out
    assert "- without FMR 0.001, 0.0001: too few impostor pairs (500)" in shown
    assert "| 0.01 " in shown and "| 0.001 " not in shown
    few = r"--fmr 0.001: too few impostor pairs .500.; use 0.002$"
    with pytest.raises(UserError, match=few):
        call(folder, monkeypatch, fmr=(), impostor_pairs=500, advise_at=1e-3)
    with pytest.raises(UserError, match=r"--fmr 0.01: too few impostor pairs .50.; use 0.02"):
        call(folder, monkeypatch, fmr=(), impostor_pairs=50)


def test_nothing_is_claimed_from_few_errors(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A few errors: no interval, so no likeness; no share from which discarding does not help."""
    generator = np.random.default_rng(1)
    ids = np.arange(240) % 40
    features = generator.normal(size=(40, 32))[ids] + 0.45 * generator.normal(size=(240, 32))
    features[0] = generator.normal(size=32)  # the only bad image
    np.save(tmp_path / "clean.npy", features.astype("f4"))
    settings = {"feats": (tmp_path / "clean.npy",), "reference": ("random", "norm")}
    np.save(tmp_path / "Embedding_Norms.npy", np.ones(240, "f4"))
    call(folder, monkeypatch, **settings, bootstrap=200, fmr=(0.01,))
    shown = capsys.readouterr().out
    found = json.loads((folder / "out/results.json").read_text())
    assert 0 < found["cells"][0]["errors_at_0"] < 30
    assert {one["told_apart"] for one in found["differences"]} == {None}
    rows = [line.split("|") for line in shown.splitlines() if line.startswith("| 0.01 ")]
    assert len(rows) == 3
    for row in rows:  # a third of the replicates has no error, so there is no interval
        assert "[" not in row[6] and row[7].strip() == ""
    assert "It is unknown where discarding more stops helping: errors left at " in shown
    assert "| discarding more stops" not in shown
    assert json.loads((folder / "out/calibration.json").read_text())["enough"] is None


def test_where_the_area_is_refused_the_next_one_orders(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders = []
    for names in (("random", "norm"), ("norm", "random")):
        call(folder, monkeypatch, fmr=(1e-3,), reference=names, scores=())
        with open(folder / "out" / "results.csv", newline="") as file:
            lines = list(csv.DictReader(file))
        assert [line["aoc"] for line in lines] == ["", ""]
        assert float(lines[0]["pauc_0.2"]) < float(lines[1]["pauc_0.2"])
        orders.append([line["scorer"] for line in lines])
    assert orders[0] == orders[1]


def test_sharpness_and_ers_are_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    lines = (folder / "DATA.labelpath").read_text().splitlines()
    names = [line.split("\t")[0] for line in lines]
    small = folder / "small"
    small.mkdir()
    rows = [0, 1, 40, 41]
    (small / "DATA.labelpath").write_text("".join(f"{names[i % 4]}\t{i // 2}\n" for i in range(4)))
    np.save(small / "f.npy", np.load(folder / "one" / "Embedding_Features.npy")[rows])
    (small / "ers_scores.txt").write_text("".join(f"{names[i]}\t0.{i}\n" for i in range(4)))
    settings = {"image_list": small / "DATA.labelpath", "feats": (small / "f.npy",), "scores": ()}
    call(folder, monkeypatch, **settings, reference=("sharpness", "ers"), fmr=(0.5,))
    shown = capsys.readouterr().out
    assert "| sharpness |" in shown and "| ers       |" in shown
    (folder / names[0]).write_bytes(b"no image")
    assert (
        call(
            folder,
            monkeypatch,
            **settings,
            reference=("sharpness",),
            min_images_per_id=1,
            fmr=(0.5,),
        )
        == 3
    )
    assert "left out: 1 of 4 images without sharpness" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fmr": (1.5,)}, "--fmr 1.5: must be between 0 and 1"),
        ({"feats": ()}, "--feats: give at least one"),
        ({"seed": -1}, "--seed -1: must be 0 or more"),
        ({"limit": (0.99,)}, "--limit 0.99: must be above 0"),
        ({"impostor_pairs": -1}, "--impostor-pairs -1: must be 0"),
        ({"bootstrap": 5}, "--bootstrap 5: must be 0"),
        ({"advise_at": 0.5}, "--advise-at 0.5: must be one of --fmr"),
        ({"max_images_per_id": 0}, "--max-images-per-id 0: must be 1 or more"),
        ({"min_images_per_id": 50}, "DATA.labelpath: no identity has 50 usable images"),
        ({"max_images_per_id": 1}, "no identity has 2 usable images"),
        ({"max_images_per_id": 1, "min_images_per_id": 1}, "there is no genuine pair"),
        ({"protocol": "iso", "discard": ("images",)}, "--protocol iso sets --threshold-at"),
        ({"protocol": "iso", "limit": (0.2,)}, "add 0.3 to --limit"),
        ({"scores": ()}, "nothing to evaluate"),
        ({"scores": (Path("good.csv"),) * 2}, "a file is given twice"),
        ({"pairs": Path("pairs.txt"), "impostor_pairs": 9}, "--pairs says which pairs to compare"),
        ({"scores": (Path("random.txt"),), "reference": ("random",)}, "both give random: rename"),
        ({"reference": ("ers",)}, "ers_scores.txt: is missing; make it with"),
    ],
)
def test_bad_settings_are_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        call(folder, monkeypatch, **settings)


def test_an_image_listed_twice_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = (folder / "DATA.labelpath").read_text().splitlines()
    (tmp_path / "twice").write_text("\n".join([*lines[:-1], lines[0]]) + "\n")
    with pytest.raises(UserError, match=r"twice:240: .* is listed twice; list it once"):
        call(folder, monkeypatch, image_list=tmp_path / "twice")


def test_a_pair_list_of_one_kind_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only = [line for line in (folder / "pairs.txt").read_text().splitlines() if line[-1] == "1"]
    (folder / "genuine.txt").write_text("\n".join(only))
    with pytest.raises(UserError, match="no impostor pair is left"):
        call(folder, monkeypatch, pairs=Path("genuine.txt"))


def test_sharpness_is_the_variance_of_opencvs_laplacian() -> None:
    face = np.random.default_rng(1).integers(0, 256, size=(2, 40, 30, 3)).astype(np.uint8)
    expected = [
        cv2.Laplacian(one @ np.array([0.299, 0.587, 0.114]), cv2.CV_64F).var() for one in face
    ]
    np.testing.assert_allclose(laplacian_variance(face), expected)
    np.testing.assert_array_equal(random_scores(9, 1), random_scores(9, 1))


def test_numbers_are_shown_short() -> None:
    assert [show("aoc", value) for value in (0.8194, -0.06, 1.0)] == [".819", "-.060", "1.000"]
    assert [show("aoc", value) for value in (-10.25, 20.0)] == ["-10.250", "20.000"]
    assert show("auc", 0.0001234) == "0.000123" and show("aoc", float("nan")) == "-"
    assert [title(name) for name in ("aoc", "pauc_0.3", "pauc_raw_0.3", "best_line_0.2")] == [
        "AOC",
        "pAUC(.3)",
        "pAUC(.3) raw e3",
        "best line(.2)",
    ]


def test_the_label_is_an_oracle(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(folder, monkeypatch, reference=("labels", "random"), fmr=(0.05,)) == 0
    lines = capsys.readouterr().out.splitlines()
    table = [line.split("|") for line in lines if line.startswith("| 0.05 ")]
    assert table[0][3].strip() == "labels" and len(table) == 3


def test_a_folder_of_npy_gives_the_numbers_of_one_file(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    features = np.load(folder / "one/Embedding_Features.npy").astype("f4")
    lines = (folder / "DATA.labelpath").read_text().splitlines()
    for line, row in zip(lines, features, strict=True):
        path = Path(line.split("\t")[0]).relative_to("faces")
        file = (tmp_path / "mine" / path).with_suffix(".npy")
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, 3 * row)
    tables = []
    for feats in (Path("one/Embedding_Features.npy"), tmp_path / "mine"):
        assert call(folder, monkeypatch, feats=(feats,), reference=("labels",)) == 0
        shown = capsys.readouterr().out
        tables.append([line for line in shown.splitlines() if line.startswith("|")])
    assert "## mine: threshold recomputed" in shown and tables[0] == tables[1]
    file.unlink()
    assert call(folder, monkeypatch, feats=(tmp_path / "mine",)) == 3
    assert "left out: 1 image without an embedding by mine" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: holds no \.npy of the first .*/p00_0000\.npy"):
        call(folder, monkeypatch, feats=(tmp_path / "empty",))


def test_other_columns_and_lower_is_better_give_the_same_curves(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [line.split(",") for line in (folder / "good.csv").read_text().splitlines()[1:]]
    rows = [f"{-float(score)};{path}\n" for path, score, _ in lines]
    (folder / "theirs.csv").write_text("noise;image\n" + "".join(rows) + rows[0])
    with pytest.raises(UserError, match="--path-column and --score-column name others"):
        call(folder, monkeypatch, scores=(Path("theirs.csv"),))
    settings = {"score_column": "noise", "path_column": "image", "lower_is_better": True}
    assert call(folder, monkeypatch, scores=(Path("theirs.csv"),), fmr=(0.05,), **settings) == 0
    shown = capsys.readouterr().out
    assert "theirs.csv: `;`-separated with the columns image and noise; lower is better" in shown
    assert "keep scores up to" in shown
    found = json.loads((folder / "out/calibration.json").read_text())
    call(folder, monkeypatch, fmr=(0.05,))
    usual = json.loads((folder / "out/calibration.json").read_text())
    assert found["lower_is_better"] and found["fnmr"] == usual["fnmr"]
    assert found["thresholds"] == [-threshold for threshold in usual["thresholds"]]


def test_nothing_that_is_read_is_written_over(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "mine").mkdir()
    (folder / "mine/results.csv").write_bytes((folder / "good.csv").read_bytes())
    settings = {"scores": (Path("mine/results.csv"),), "out_dir": Path("mine")}
    with pytest.raises(UserError, match=r"--out-dir mine: its results.csv is an input"):
        call(folder, monkeypatch, **settings)
    assert (folder / "mine/results.csv").read_bytes() == (folder / "good.csv").read_bytes()


def test_the_label_needs_two_people(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = (folder / "DATA.labelpath").read_text().splitlines()
    alone = folder / "alone.labelpath"
    alone.write_text("".join(line.split("\t")[0] + "\t0\n" for line in lines))
    with pytest.raises(UserError, match="gives no labels: the largest identity leaves 0 images"):
        call(folder, monkeypatch, reference=("labels",), image_list=alone)


def test_the_papers_argument_in_one_command(
    folder: Path, run_script: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ("--feats", "one/Embedding_Features.npy", "--image-list", "DATA.labelpath")
    done = run_script("evaluation/leave_one_out.py", *files, cwd=folder)
    assert done.returncode == 0, done.stderr
    everyone, lowering = done.stdout.splitlines()
    assert everyone.startswith("240 images, all: Spearman -0.") and "Pearson -0." in everyone
    assert "whose absence lowers the FNMR: Spearman -0." in lowering


def test_an_image_without_a_mate_is_counted_with_labels_too(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = (folder / "DATA.labelpath").read_text().splitlines()
    lines[0] = lines[0].rpartition("\t")[0] + "\t999"
    (tmp_path / "DATA.labelpath").write_text("\n".join(lines) + "\n")
    settings: dict[str, object] = {"image_list": tmp_path / "DATA.labelpath", "fmr": (0.05,)}
    labels = settings | {"reference": ("labels",)}
    assert call(folder, monkeypatch, **labels) == 0
    shown = capsys.readouterr().out
    assert "without 1 image of identities with one image" in shown
    assert "- 239 images of 40 identities" in shown
    assert call(folder, monkeypatch, **labels, min_images_per_id=1) == 3
    shown = capsys.readouterr().out
    assert "left out: 1 of 240 images without labels" in shown
    assert "- 239 images of 40 identities" in shown
    assert call(folder, monkeypatch, **settings, min_images_per_id=1) == 0
    assert "- 240 images of 41 identities" in capsys.readouterr().out


def test_the_figure_takes_any_result(tmp_path: Path) -> None:
    """No threshold, no error, no error in a replicate, a perfect score to compare with."""
    features, ids, quality = faces(60, 12, seed=2)
    scores = {"good": quality, "flat": np.zeros(60)}
    rules = [Rules("recomputed", "images"), Rules("fixed", "pairs")]
    results = study("one", all_pairs(features, ids), scores, [0.2, 1e-9], rules, replicates=3)
    clean = all_pairs(np.eye(12, dtype=np.float32)[ids], ids)
    results += study("clean", clean, scores, [0.2], rules[:1], replicates=3)
    assert results[-1].curve.errors[0] == 0 and np.isnan(results[2].curve.fnmr[0])
    plot_curves(tmp_path / "edc.png", results, "aoc")
    figure = cv2.imread(str(tmp_path / "edc.png"))
    assert figure is not None and figure.shape[0] > figure.shape[1] > 1000


def test_no_two_scorers_look_alike() -> None:
    assert len({line_style(number) for number in range(49)}) == 49
