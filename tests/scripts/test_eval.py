"""eval.py as a user runs it: whatever is typed, one row an image, in order, with a reason."""

import csv
import io
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import eval as script
from common.cli import EXIT_DONE, EXIT_INTERRUPTED, EXIT_SKIPPED, EXIT_USAGE
from dataset.faces import Faces
from dataset.find import find_images
from dataset.images import read_face
from dataset.left_out import Skipped
from dataset.lists import table_of
from evaluation.outputs import check_targets
from evaluation.scoring import score as score_faces
from models import QualityModel, load_quality_model
from sdd_fiqa.errors import UserError

Rows = list[dict[str, str]]


@pytest.fixture
def here(tmp_path: Path, faces: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "faces").symlink_to(faces)
    return tmp_path


@pytest.fixture(scope="module")
def model(weights: dict[str, Path]) -> QualityModel:
    return load_quality_model(weights["quality"], device="cpu", precision="fp32")


@pytest.fixture
def score(weights: dict[str, Path]) -> Callable[..., int]:
    def run(*paths: str, **options: Any) -> int:
        usual: dict[str, Any] = {"device": "cpu", "precision": "fp32"}
        return script.main(paths, model=str(weights["quality"]), **{**usual, **options})

    return run


def read(source: str | Path) -> Rows:
    text = source if isinstance(source, str) else source.read_bytes().decode()
    return list(csv.DictReader(io.StringIO(text, newline="")))


def values(rows: Rows) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([float(row["score"]) for row in rows])


def test_a_folder_is_scored_in_order_as_the_network_does(
    here: Path, score: Any, model: QualityModel, capsys: pytest.CaptureFixture[str]
) -> None:
    assert score("faces", top=2, bottom=3) == EXIT_DONE
    rows = read(here / "scores.csv")
    paths = [f"faces/id{i}/{j}.{'png' if j % 2 else 'jpg'}" for i in range(6) for j in range(4)]
    assert [row["path"] for row in rows] == paths
    assert {row["status"] for row in rows} == {"ok"}
    expected = model(np.stack([read_face(path) for path in paths]))
    assert np.ptp(expected) > 5  # the faces differ, so an order can be wrong
    assert np.abs(values(rows) - expected).max() < 1e-3
    out, err = capsys.readouterr()
    lines = out.splitlines()
    quantiles = "median {1:.1f}, 5 % below {0:.1f}, 5 % above {2:.1f}"
    assert lines[0] == "scored 24 of 24 images: " + quantiles.format(
        *np.percentile(expected, [5, 50, 95])
    )
    order = np.argsort(expected)
    assert lines[1:] == [
        *(f"top\t{expected[row]:.2f}\t{paths[row]}" for row in order[::-1][:2]),
        *(f"bottom\t{expected[row]:.2f}\t{paths[row]}" for row in order[:3]),
    ]
    assert "not scored" not in err


def test_scores_do_not_depend_on_how_they_are_made(here: Path, score: Any) -> None:
    """Batch size, order and threads, in float32: within 1e-3 points."""
    score("faces")
    expected = {row["path"]: float(row["score"]) for row in read(here / "scores.csv")}
    names = sorted(expected)
    shuffled = np.random.default_rng(0).permutation(names).tolist()
    (here / "list.txt").write_text("\n".join(shuffled))
    for paths, options in [
        (["faces"], {"batch_size": 1, "num_workers": 1}),
        (["faces"], {"batch_size": 5, "num_workers": 3}),
        (["faces"], {"batch_size": 100}),
        (["list.txt"], {"batch_size": 7}),
        (["faces/*/*.png", "faces/*/*.jpg"], {}),
    ]:
        assert score(*paths, out="other.csv", **options) == EXIT_DONE
        found = {row["path"]: float(row["score"]) for row in read(here / "other.csv")}
        assert found.keys() == expected.keys()
        assert max(abs(found[path] - expected[path]) for path in names) < 1e-3
    assert [row["path"] for row in read(here / "other.csv")] == sorted(
        names, key=lambda path: (not path.endswith("png"), path)
    )


def test_bf16_scores_are_near_and_not_in_steps(here: Path, score: Any) -> None:
    score("faces", out="a.csv", precision="fp32")
    score("faces", out="b.csv", precision="bf16")
    plain, mixed = values(read(here / "a.csv")), values(read(here / "b.csv"))
    assert 0 < np.abs(plain - mixed).max() < 0.2 * np.ptp(plain)
    assert np.abs(mixed * 4 - np.round(mixed * 4)).max() > 0.05


def test_one_image_is_one_number(
    here: Path, score: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "scores.csv").write_text("path,score,status\n")  # of a thousand images
    assert score("faces/id0/0.jpg", report=Path("page.html")) == EXIT_DONE
    number = capsys.readouterr().out
    assert (here / "scores.csv").read_text() == "path,score,status\n"
    assert (here / "page.html").exists()
    assert score("faces/id0/0.jpg", out="one.csv") == EXIT_DONE
    rows = read(here / "one.csv")
    assert number == capsys.readouterr().out == f"{values(rows)[0]:.2f}\n"
    assert score("faces/id0/0.jpg", out="-") == EXIT_DONE
    out, err = capsys.readouterr()
    assert read(out) == rows
    assert number in err
    for name, content in (("cut.jpg", b"\xff\xd8\xff"), ("clip.mp4", b"")):
        (here / name).write_bytes(content)
        assert score(name) == EXIT_SKIPPED
        out, err = capsys.readouterr()
        assert out == "" and err.startswith(f"not scored: {name}: ")
    assert len(list(here.glob("*.csv"))) == 2


def test_left_out_videos_have_a_row_and_a_reason(
    here: Path, score: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "in").mkdir()
    for name in ("a.jpg", "=2.jpg", "\x1b[2J.jpg"):
        shutil.copy(here / "faces/id0/0.jpg", here / "in" / name)
    (here / "in/clip.mp4").touch()
    os.chdir(here / "in")
    assert score("=2.jpg", "../in", report=Path("page.html")) == EXIT_SKIPPED
    rows = read(here / "in/scores.csv")
    assert [row["path"] for row in rows] == [
        *("./=2.jpg", "../in/\x1b[2J.jpg", "../in/=2.jpg", "../in/a.jpg", "../in/clip.mp4"),
    ]
    assert [row["status"] for row in rows[3:]] == ["ok", "is a video: add --frames-per-second 2"]
    assert "is a video" in Path("page.html").read_text()
    out, err = capsys.readouterr()
    number = values(rows[:1])[0]
    assert out == f"scored 4 of 5 images: {', '.join([f'{number:.1f}'] * 4)}\n"
    assert "not scored: ../in/clip.mp4: is a video" in err


def test_the_best_of_each_folder(
    here: Path, score: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "album/bob").mkdir(parents=True)
    shutil.copytree(here / "faces/id0", here / "album/ann")
    (here / "album/bob/1.jpg").write_text("no image")
    options: dict[str, Any] = {"per": "-2", "top": 1, "copy_to": Path("best")}
    with pytest.raises(UserError, match="--copy-to best: needs --top"):
        score("album", copy_to=Path("best"))
    assert score("album", **options) == EXIT_SKIPPED
    rows = read(here / "scores.csv")
    assert list(rows[0]) == ["path", "score", "status", "rank"]
    scores = values(rows[:4])
    order = np.argsort(-scores, kind="stable")
    assert [row["rank"] for row in rows] == [
        *(str(np.flatnonzero(order == row)[0] + 1) for row in range(4)),
        "",
    ]
    best, second = rows[order[0]], rows[order[1]]
    line = f"ann\t{float(best['score']):.2f}\t{best['path']}\tof 4\tnext {scores[order[1]]:.2f}\n"
    out, err = capsys.readouterr()
    assert out.endswith(line) and out.count("\n") == 2
    assert "no face scored in bob\n" in err
    assert (here / best["path"].replace("album", "best")).exists()
    (here / second["path"].replace("album", "best")).write_text("mine")
    with pytest.raises(UserError, match="is there, with other bytes"):
        score("album", out="none.csv", **options)
    assert not (here / "none.csv").exists()


@pytest.fixture
def awkward(here: Path) -> dict[str, str]:
    """Faces of awkward names and images that cannot be read: {path: what status begins with}."""
    good = [
        'a "quoted", name.png',
        "it's  two spaces.png",
        "=1+2.png",
        "\u674e\u96f7/\u00e9\U0001f600.png",
        " leading.png",
        "#%3b;$(touch ran)`x`.png",
        "x" * 200 + ".png",
    ]
    bad = {
        "text.jpg": "is not an image",
        "zero.png": "is empty (0 bytes)",
        "cut.jpg": "is damaged",
    }
    source = (here / "faces/id0/1.png").read_bytes()
    jpeg = (here / "faces/id0/0.jpg").read_bytes()
    contents = {**dict.fromkeys(good, source), "text.jpg": b"text", "zero.png": b""}
    for name, content in {**contents, "cut.jpg": jpeg[: len(jpeg) // 2]}.items():
        file = here / "awkward" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return {f"awkward/{name}": bad.get(name, "ok") for name in [*good, *bad]}


def test_every_image_keeps_its_place_and_its_name(
    here: Path, score: Any, awkward: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert score("awkward", "faces/id0/1.png") == EXIT_SKIPPED
    rows = read(here / "scores.csv")
    paths = sorted(awkward, key=lambda path: (path.count("/"), path))
    assert [row["path"] for row in rows] == [*paths, "faces/id0/1.png"]
    for row, path in zip(rows, paths, strict=False):
        assert row["status"].startswith(awkward[path])
        assert (row["score"] == "") == (row["status"] != "ok")
    numbers = {row["score"] for row in rows if row["status"] == "ok"}
    assert len(numbers) == 1  # the same picture under every name
    out, err = capsys.readouterr()
    assert out.startswith("scored 8 of 11 images: ") and "median" not in out
    for path, status in awkward.items():
        assert (f"not scored: {path}: {status}" in err) == (status != "ok")
    assert not (here / "ran").exists()
    assert (here / "scores.csv").read_bytes().startswith(b"path,score,status\n")


def test_many_unreadable_images_are_named_in_part(
    here: Path, score: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "z.jpg").touch()
    (here / "list.txt").write_text("".join(f"gone/{n}.jpg\n" for n in range(8)) + "z.jpg\n")
    assert score("list.txt", "faces/id0") == EXIT_SKIPPED
    out, err = capsys.readouterr()
    assert out.startswith("scored 4 of 13 images: ")
    assert err.count("not scored: gone/") == 5
    assert "not scored: 9 images in all; the status column says why" in err
    assert score("list.txt") == EXIT_SKIPPED
    assert capsys.readouterr().out == "scored 0 of 9 images\n"


def test_what_is_left_out_is_said(
    here: Path, score: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "one").mkdir()
    for name in ("a.png", "ta\tb.png"):
        shutil.copy(here / "faces/id0/1.png", here / "one" / name)
    (here / "one/notes.txt").touch()
    assert score("one") == EXIT_SKIPPED
    assert "left out: .txt files: 1\n" in capsys.readouterr().err
    assert read(here / "scores.csv")[1] == {
        "path": "one/ta\\tb.png",
        "score": "",
        "status": "its name holds a TAB, a line break or no UTF-8: rename it",
    }


def test_photos_are_noticed(here: Path, score: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    (here / "photos").mkdir()
    for number, size in enumerate([(640, 640), (112, 150), (120, 112), (224, 224), (1, 1)]):
        Image.new("RGB", size, (90, 60, 50)).save(here / f"photos/{number}.png")
    assert score("photos") == EXIT_DONE
    assert "resized as they are: 2 of 5 images; unaligned" in capsys.readouterr().err


def test_what_is_refused_before_any_work(
    here: Path, score: Any, weights: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "empty").mkdir()
    (here / "file").touch()
    cases: list[tuple[list[str], dict[str, Any], str]] = [
        (["none"], {}, "none: no such file or folder"),
        (["empty"], {}, "empty: no images found"),
        (["faces"], {"out": "empty"}, "empty: is a folder; name a file"),
        (["faces"], {"out": "file/x.csv"}, r"file/x\.csv: cannot be written"),
        (["faces"], {"report": Path("file/x.html")}, r"file/x\.html: cannot be written"),
        (["faces"], {"top": -1}, "--top -1: must be 0 or more"),
        (["faces"], {"bottom": -5}, "--bottom -5: must be 0 or more"),
        (["faces"], {"batch_size": 0}, "--batch-size 0: must be 1 or more"),
        (["faces"], {"num_workers": 0}, "--num-workers 0: must be 1 or more"),
        (["faces"], {"backbone": "R_50"}, "is a MFN network, not the R_50"),
        (["faces"], {"device": "tpu"}, "--device tpu: must be auto, cpu, cuda or cuda:"),
    ]
    for paths, options, message in cases:
        with pytest.raises(UserError, match=message):
            score(*paths, **options)
    with pytest.raises(UserError, match="a recognition head; a quality head is needed"):
        script.main(("faces",), model=str(weights["recognition"]))
    with pytest.raises(UserError, match="--model none: no such file"):
        script.main(("faces",), model="none")
    assert script.main(()) == EXIT_USAGE
    assert not (here / "scores.csv").exists()


def test_infinite_scores_are_none(
    here: Path, score: Any, random_state: Callable[..., dict[str, Any]]
) -> None:
    state = random_state("MFN")
    state["quality.3.weight"].fill_(float("nan"))
    torch.save(state, here / "nan.pth")
    assert script.main(("faces/id0",), model="nan.pth", device="cpu") == EXIT_SKIPPED
    rows = read(here / "scores.csv")
    assert {(row["score"], row["status"]) for row in rows} == {
        ("", "the network's output is not finite")
    }


def test_the_report_goes_with_the_scores(here: Path, score: Any, awkward: dict[str, str]) -> None:
    (here / "out").mkdir()
    assert score("awkward", "faces", report=Path("out/page.html")) == EXIT_SKIPPED
    page = (here / "out/page.html").read_text()
    assert "mfn_quality.pth (MFN)" in page
    assert "is empty (0 bytes)" in page
    assert "data:image/jpeg;base64," in page


def test_the_published_format_round_trips(
    here: Path, random_state: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    """R_50, keys with `module.`: scored without a word about its architecture."""
    state = {f"module.{key}": value for key, value in random_state("R_50").items()}
    torch.save(state, here / "SDD_FIQA_checkpoints_r50.pth")
    (here / "list.txt").write_text("faces/id0/0.jpg\nfaces/id3/1.png\n")
    for precision in ("fp32", "bf16"):
        script.main(
            ("list.txt",),
            model="SDD_FIQA_checkpoints_r50.pth",
            out=f"{precision}.csv",
            device="cpu",
            precision=precision,
        )
    plain, mixed = values(read(here / "fp32.csv")), values(read(here / "bf16.csv"))
    assert np.abs(plain - mixed).max() < 1
    assert abs(plain[0] - plain[1]) > 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_behind_stdout_is_one_line(
    here: Path, start_script: Callable[..., "subprocess.Popen[str]"]
) -> None:
    arguments = ("faces/id0/0.jpg", "--model", "small", "--device", "cpu", "--out", "-")
    with open("/dev/full", "w") as full:
        process = start_script("eval.py", *arguments, cwd=here, stdout=full)
        _, errors = process.communicate(timeout=240)
    assert process.returncode == 1
    assert errors == "error: --out -: cannot be written (No space left on device)\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_behind_stderr_costs_no_score(
    here: Path, start_script: Callable[..., "subprocess.Popen[str]"]
) -> None:
    arguments = ("faces/id0", "--model", "small", "--device", "cpu")
    with open("/dev/full", "w") as full:
        process = start_script("eval.py", *arguments, cwd=here, stderr=full)
        process.communicate(timeout=240)
    assert process.returncode == EXIT_DONE
    assert {row["status"] for row in read(here / "scores.csv")} == {"ok"}


def test_streams(
    here: Path,
    run_script: Callable[..., Any],
    start_script: Callable[..., "subprocess.Popen[str]"],
    awkward: dict[str, str],
) -> None:
    """--out - through a terminal that knows ASCII only; and a reader who leaves early."""
    arguments = ("--model", "small", "--device", "cpu", "--out", "-")
    done = run_script("eval.py", "awkward", *arguments, cwd=here, env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == EXIT_SKIPPED, done.stderr
    rows = read(done.stdout)
    assert len(rows) == len(awkward)
    assert r"awkward/\u674e\u96f7/\xe9\U0001f600.png" in [row["path"] for row in rows]
    assert "scored 7 of 10 images" in done.stderr
    # `| head -1`: the list is long enough that the pipe cannot hold it all.
    (here / "list.txt").write_text("faces/id0/0.jpg\n" + f"gone/{'long' * 1000}.jpg\n" * 50)
    process = start_script("eval.py", "list.txt", *arguments, cwd=here)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "path,score,status\n"
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=120) == EXIT_DONE
    assert "Traceback" not in err
    assert "Broken" not in err


@pytest.mark.parametrize(
    ("file", "signals"),
    [
        ("scores.csv", [signal.SIGHUP]),  # the terminal is closed
        ("scores.csv.partial", [signal.SIGINT, signal.SIGINT]),
    ],
)
def test_interrupted_it_writes_what_it_has(
    here: Path,
    stalled_script: Callable[..., Any],
    file: str,
    signals: list[signal.Signals],
) -> None:
    """Ctrl-C while the 6th image keeps it waiting; the scores of a run before stay."""
    before = "path,score,status\nwhole.png,1.0000,ok\n"
    if file != "scores.csv":
        (here / "scores.csv").write_text(before)
    (here / "slow.png").symlink_to("faces/id5/1.png")
    paths = [f"faces/id{i}/1.png" for i in range(5)]
    (here / "list.txt").write_text("\n".join([*paths, "slow.png", *paths]))
    stalled = stalled_script(
        "eval.py",
        "list.txt",
        *("--model", "small", "--device", "cpu", "--batch-size", 1),
        *("--num-workers", 1, "--report", "page.html"),
        cwd=here,
        at="slow.png",
    )
    # Two batches are decoded ahead of the one in use: with the 6th begun, 3 are scored.
    for number in signals:
        stalled.process.send_signal(number)
        time.sleep(0.3)
    stalled.go_on()
    out, err = stalled.process.communicate(timeout=120)
    assert stalled.process.returncode == EXIT_INTERRUPTED, err
    assert "interrupted: what is scored so far is written" in err
    assert "Traceback" not in err
    rows = read(here / file)
    assert file == "scores.csv" or (here / "scores.csv").read_text() == before
    assert [row["path"] for row in rows] == [*paths, "slow.png", *paths]
    done = [row for row in rows if row["status"] == "ok"]
    assert 3 <= len(done) <= 5
    assert rows[: len(done)] == done
    assert {row["status"] for row in rows[len(done) :]} == {"not scored: interrupted"}
    assert out.startswith(f"scored {len(done)} of 11 images: ")
    assert (here / "page.html").exists()
    lines = (here / "scores.csv.journal").read_bytes().split(b"\n")
    assert len(lines) == 2 + len(done)  # two lines before the blocks, of one image each


def test_nothing_that_is_read_is_written_over(here: Path) -> None:
    shutil.copy(here / "faces/id0/0.jpg", here / "own.jpg")
    (here / "list.txt").write_text("own.jpg\n")
    (here / "old.csv").write_text("path,score,status\n")
    (here / "other.txt").write_text("notes")
    check_targets({"--out": "old.csv", "--report": Path("new.html")}, ["list.txt", "small"])
    check_targets({"--out": "/dev/null", "--report": Path("/dev/null")}, [])
    for out, report, message in (
        ("./list.txt", None, r"--out \./list\.txt: is read; name another file"),
        ("x.csv", Path("own.jpg"), r"--report own\.jpg: is a file of another kind; name another"),
        ("other.txt", None, r"--out other\.txt: is a file of another kind"),
        ("old.csv", Path("old.csv"), r"--report old\.csv: is written by --out"),
        ("new.csv", Path("new.csv"), r"--report new\.csv: is written by --out"),
    ):
        with pytest.raises(UserError, match=message):
            check_targets({"--out": out, "--report": report}, ["list.txt", "faces"])


def test_the_next_batch_is_begun_before_scores_are_waited_for(here: Path) -> None:
    done: list[str] = []

    class Network:
        def begin(self, faces: Any) -> Callable[[], Any]:
            number = len([entry for entry in done if entry.startswith("begun")])
            done.append(f"begun {number}")

            def wait() -> Any:
                done.append(f"waited for {number}")
                return np.full(len(faces), number, np.float32)

            return wait

    table = table_of(find_images(["faces"], Skipped()), here / "list.txt")
    network: Any = Network()
    scores, interrupted = score_faces(Faces(table, 10), len(table), network)
    assert not interrupted and scores.values.tolist() == [0] * 10 + [1] * 10 + [2] * 4
    assert done == [
        *("begun 0", "begun 1", "waited for 0", "begun 2", "waited for 1", "waited for 2"),
    ]
