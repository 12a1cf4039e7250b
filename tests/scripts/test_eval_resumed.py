"""eval.py killed and run again: the table is that of an undisturbed run, and little is done twice.

Where a file changed or came, a batch may hold other images than in an undisturbed run. Then scores
may differ by rounding, and are compared as numbers.
"""

from __future__ import annotations

import base64
import csv
import json
import os
import random
import shutil
import signal
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import dataset.loader as loader
import eval as script
from common.cli import EXIT_DONE, EXIT_SKIPPED
from dataset import photo_faces as photos
from dataset.containers import read_run
from dataset.images import read_image
from dataset.journal import Block, Journal
from evaluation.scoring import open_journal
from models import QualityModel
from sdd_fiqa.errors import UserError
from sdd_fiqa.images import Image

Score = Callable[..., int]


class Killed(BaseException):
    """What no code catches, as little as kill -9."""


@pytest.fixture
def here(tmp_path: Path, make_faces: Callable[[Path], Path], monkeypatch: Any) -> Path:
    monkeypatch.chdir(tmp_path)
    make_faces(tmp_path / "faces")
    (tmp_path / "faces/id1/1.png").write_bytes(b"no image")
    return tmp_path


@pytest.fixture
def album(here: Path, fetched: Callable[[str], Path]) -> Path:
    """Photos of one or two faces, upside down, of none, and none at all."""
    fetched("yunet")
    root = fetched("orl")
    folder = here / "photos"
    folder.mkdir()
    faces = [read_image(root / f"s{person}" / "1.pgm") for person in range(1, 8)]
    shown: list[Image] = [*faces, np.hstack(faces[:3]), np.rot90(faces[1], 2), faces[0] * 0 + 90]
    shown[8:8] = [np.rot90(faces[2], 3)]
    for number, image in enumerate(shown):
        cv2.imwrite(str(folder / f"{number}.png"), np.ascontiguousarray(image[:, :, ::-1]))
    (folder / "5a.png").write_bytes(b"")
    return folder


@pytest.fixture
def score(weights: dict[str, Path]) -> Score:
    def run(*paths: str, **options: Any) -> int:
        usual: dict[str, Any] = {"device": "cpu", "precision": "fp32", "batch_size": 2}
        usual["model"] = str(weights["quality"])
        return script.main(paths, **{**usual, **options})

    return run


@pytest.fixture
def decoded(monkeypatch: Any) -> list[int]:
    """One entry for each listed image that is read."""
    reads: list[int] = []

    def counted(paths: list[str]) -> Any:
        reads.extend([1] * len(paths))
        return read_run(paths)

    def read(path: str) -> Image:
        reads.append(1)
        return read_image(path)

    monkeypatch.setattr(loader, "read_run", counted)
    monkeypatch.setattr(photos, "read_image", read)
    return reads


def kill_after(blocks: int, monkeypatch: Any, run: Callable[[], int]) -> bool:
    """Runs something that is killed when it has written so many blocks; whether it was."""
    left = [blocks]
    write = Journal.write

    def counted(journal: Journal, *more: Any) -> None:
        if not left[0]:
            raise Killed
        left[0] -= 1
        write(journal, *more)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "write", counted)
        try:
            run()
        except Killed:
            return True
    return False


def undisturbed(score: Score, *paths: str, **options: Any) -> bytes:
    assert score(*paths, out="whole.csv", **options) == EXIT_SKIPPED
    assert not Path("whole.csv.journal").exists()
    return Path("whole.csv").read_bytes()


def table() -> dict[str, tuple[float, str]]:
    with open("scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return {row["path"]: (float(row["score"] or -1), row["status"]) for row in rows}


@pytest.mark.parametrize(
    ("folder", "flags"),
    [("faces", []), ("photos", ["--align"]), ("photos", ["--all-faces"])],
)
def test_killed_and_run_again_the_bytes_are_the_same(
    folder: str,
    flags: list[str],
    here: Path,
    album: Path,
    score: Score,
    stalled_script: Callable[..., Any],
    decoded: list[int],
) -> None:
    """kill -9 while an image is read; what was scored before is not read again."""
    options: dict[str, Any] = {flag.strip("-").replace("-", "_"): True for flag in flags}
    options["model"] = "small"  # its process starts in a tenth of the time that torch takes
    expected = undisturbed(score, folder, **options)
    images = sorted(path for path in (here / folder).rglob("*") if path.is_file())
    number = random.Random(f"{folder}{flags}").randrange(8, len(images))
    usual = ("--model", "small", "--device", "cpu", "--precision", "fp32")
    one = ("--batch-size", 2, "--num-workers", 1)
    at = str(images[number].relative_to(here))
    stalled = stalled_script("eval.py", folder, *usual, *one, *flags, cwd=here, at=at)
    stalled.process.send_signal(signal.SIGKILL)
    stalled.process.communicate()
    assert stalled.process.returncode == -signal.SIGKILL
    assert not (here / "scores.csv").exists()
    Path("scores.csv.partial").touch()  # of a run that was stopped once more
    decoded.clear()
    assert score(folder, top=2, bottom=1, **options) == EXIT_SKIPPED
    again = len(decoded)
    assert (here / "scores.csv").read_bytes() == expected
    assert not list(here.glob("scores.csv.*"))
    if folder == "faces":  # two batches are decoded ahead, one is in work
        assert again <= len(images) - number + 8


@pytest.mark.parametrize("all_faces", [False, True])
def test_killed_at_any_batch(
    all_faces: bool, album: Path, score: Score, monkeypatch: Any, decoded: list[int]
) -> None:
    """Also while photos are looked at turned; each run adds one or more batches."""
    options = {"all_faces": all_faces, "align": True, "model": "small"}
    expected = undisturbed(score, "photos", **options)
    assert b",270," in expected  # the last of three looks at a photo, which are one entry
    runs = 0

    def run() -> int:
        return score("photos", **options)

    while kill_after(1, monkeypatch, run):
        runs += 1
        decoded.clear()
    assert runs >= 6
    assert len(decoded) <= 4  # the last run finds nearly all in the journal
    assert Path("scores.csv").read_bytes() == expected


def test_changed_removed_and_new_files(
    here: Path, score: Score, monkeypatch: Any, decoded: list[int]
) -> None:
    assert kill_after(9, monkeypatch, lambda: score("faces"))
    shutil.copy("faces/id5/1.png", "faces/id0/1.png")  # changed
    Path("faces/id1/2.jpg").unlink()
    shutil.copy("faces/id4/0.jpg", "faces/id2/9.jpg")  # new
    decoded.clear()
    assert score("faces") == EXIT_SKIPPED
    # The changed file and its neighbour, the removed one's, the new one, and the rest of the list.
    assert len(decoded) == 2 + 1 + 1 + 6
    mixed = table()
    assert score("faces") == EXIT_SKIPPED
    fresh = table()
    assert list(mixed) == list(fresh)
    for path, (value, status) in fresh.items():
        assert abs(mixed[path][0] - value) < 2e-4
        assert mixed[path][1] == status


def test_a_file_of_the_same_size_is_told_by_its_time(here: Path, score: Any) -> None:
    journal = Journal(here / "x.journal", {})
    path = "faces/id0/1.png"
    key = journal.key(path)
    assert key is not None and key[0] == os.path.getsize(path)
    os.utime(path, ns=(0, key[1] + 1))
    assert journal.key(path) == [key[0], key[1] + 1]
    assert journal.key("faces/none.png") is None
    journal.close(done=True)
    assert not (here / "x.journal").exists()


def test_members_have_the_key_of_their_container(here: Path) -> None:
    for name in ("a.rec", "a.idx"):
        Path(name).write_bytes(name.encode() * 3)
    keys = []
    for _ in range(2):
        journal = Journal(here / "x.journal", {})
        assert journal.key("a.rec#1") == journal.key("a.rec#2")
        keys.append(journal.key("a.rec#1"))
        journal.close(done=True)
        os.utime("a.idx", ns=(0, 5))
    assert keys[0] != keys[1]
    assert journal.key("b.rec#1") == journal.key("b.rec#2")


def test_another_flag_starts_anew(
    here: Path, score: Score, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert kill_after(3, monkeypatch, lambda: score("faces/id0", "faces/id2"))
    assert score("faces/id0", precision="auto") == EXIT_DONE
    err = capsys.readouterr().err
    assert "scores.csv.journal: is of a run with another --precision; starts anew" in err
    assert not Path("scores.csv.journal").exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"align": True}, "--align"),
        ({"all_faces": True}, "--align and --all-faces"),
        ({"frames_per_second": 2.0}, "--frames-per-second"),
        ({"model": "own.onnx"}, "model"),
    ],
)
def test_what_makes_another_run(
    change: dict[str, Any], named: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("own.onnx").write_bytes(b"other bytes of the same name")
    network = QualityModel("a name", None, 1, lambda _: lambda: np.empty(0, np.float32))
    flags: dict[str, Any] = {"model": "small", "align": False, "all_faces": False}
    flags |= {"frames_per_second": None, "precision": "auto"}
    for run in (flags, flags, {**flags, **change}):
        assert capsys.readouterr().err == ""
        journal = open_journal("scores.csv", network, **run)
        assert journal is not None
        journal.close(done=False)
    assert f"is of a run with another {named}; starts anew" in capsys.readouterr().err


def test_blocks_reach_the_disk_every_10_seconds(here: Path, monkeypatch: Any) -> None:
    synced: list[float] = []
    now = [0.0]
    monkeypatch.setattr("dataset.journal.time.monotonic", lambda: now[0])
    monkeypatch.setattr("dataset.journal.os.fsync", lambda _: synced.append(now[0]))
    journal = Journal(here / "x.journal", {})
    for now[0] in (1, 9.9, 10, 12, 19.9, 20.5, 40):
        journal.write("", Block([], {}, 0, -1.0, np.empty(0, [("score", "<f4")])))
    assert synced == [10, 20.5, 40]
    journal.close(done=False)


def test_another_model_or_decoder_starts_anew(here: Path, capsys: Any, monkeypatch: Any) -> None:
    file = here / "x.journal"
    Journal(file, {"model": "a"}).close(done=False)
    Journal(file, {"model": "a"}).close(done=False)
    assert capsys.readouterr().err == ""
    Journal(file, {"model": "b"}).close(done=False)
    assert "another model; starts anew" in capsys.readouterr().err
    monkeypatch.setattr("dataset.journal.decoder_version", lambda: "next")
    Journal(file, {"model": "b"}).close(done=False)
    assert "another the decoder's version" in capsys.readouterr().err


def test_a_block_cut_anywhere_is_the_only_one_lost(
    here: Path, score: Score, monkeypatch: Any, decoded: list[int]
) -> None:
    expected = undisturbed(score, "faces")
    assert kill_after(6, monkeypatch, lambda: score("faces"))
    file = Path("scores.csv.journal")
    whole = file.read_bytes()
    last = whole.rindex(b"\n")
    cuts = random.Random(1).sample(range(last, len(whole)), 3)
    for cut in (last, last + 1, *cuts, len(whole) - 1):
        file.write_bytes(whole[:cut])
        decoded.clear()
        assert kill_after(2, monkeypatch, lambda: score("faces"))
        decoded.clear()
        assert score("faces") == EXIT_SKIPPED
        assert len(decoded) == 24 - 2 * (5 + 2)
        assert Path("scores.csv").read_bytes() == expected


@pytest.mark.parametrize("cut", [0, 5, 28, 40, -1])
def test_without_its_head_a_journal_starts_anew(here: Path, cut: int, capsys: Any) -> None:
    file = here / "x.journal"
    Journal(file, {}).close(done=False)
    file.write_bytes(file.read_bytes()[:cut])
    Journal(file, {}).close(done=False)
    assert "is damaged; all is scored anew" in capsys.readouterr().err
    Journal(file, {}).close(done=False)
    assert capsys.readouterr().err == ""


def test_a_file_of_another_kind_is_not_replaced(here: Path, score: Score) -> None:
    Path("scores.csv.journal").write_text("Dear diary\n")
    with pytest.raises(UserError, match=r"scores\.csv\.journal: is no journal of scores; name"):
        score("faces")
    assert Path("scores.csv.journal").read_text() == "Dear diary\n"


def claim(content: dict[str, Any], name: str) -> None:
    """Makes a block say what it cannot know."""
    arrays = content["arrays"]
    floats = base64.b64encode(np.full(3, 99, "<f4").tobytes()).decode()
    if name == "more scores than images":
        arrays["score"] = floats
    elif name == "more rows than images":
        arrays["score"] = floats
        arrays["image"] = base64.b64encode(np.array([0, 1, 1], "<i4").tobytes()).decode()
    elif name == "rows of other images":
        arrays["image"] = base64.b64encode(np.array([0, 7], "<i4").tobytes()).decode()
    elif name == "a score that is no number":
        arrays["score"] = base64.b64encode(np.full(2, np.inf, "<f4").tobytes()).decode()
    elif name == "a reason of a row that is none":
        content["reasons"] = {"17": "gone"}
    elif name == "another image":
        content["images"][1][0] = "faces/none.png"
    elif name == "no arrays":
        content["arrays"] = None
    else:
        content["images"] = 5


@pytest.mark.parametrize(
    "name",
    [
        "more scores than images",
        "more rows than images",
        "rows of other images",
        "a score that is no number",
        "a reason of a row that is none",
        "another image",
        "no arrays",
        "no images",
    ],
)
def test_rows_that_do_not_check_out_are_dropped(
    name: str, here: Path, score: Score, monkeypatch: Any
) -> None:
    """The checksum is right, and what the block says is not."""
    expected = undisturbed(score, "faces/id0", "faces/id1")
    assert kill_after(3, monkeypatch, lambda: score("faces/id0", "faces/id1"))
    file = Path("scores.csv.journal")
    lines = file.read_bytes().split(b"\n")
    for number in (2, 3):
        content = json.loads(lines[number][9:])
        claim(content, name)
        text = json.dumps(content).encode()
        lines[number] = b"%08x %s" % (zlib.crc32(text), text)
    file.write_bytes(b"\n".join(lines))
    assert score("faces/id0", "faces/id1") == EXIT_SKIPPED
    assert Path("scores.csv").read_bytes() == expected


def test_a_changed_byte_is_noticed(here: Path, score: Score, monkeypatch: Any) -> None:
    expected = undisturbed(score, "faces")
    assert kill_after(8, monkeypatch, lambda: score("faces"))
    file = Path("scores.csv.journal")
    raw = bytearray(file.read_bytes())
    head = raw.index(b"\n", raw.index(b"\n") + 1)
    for place in random.Random(2).sample(range(head, len(raw)), 20):
        raw[place] ^= 1
    file.write_bytes(raw)
    assert score("faces") == EXIT_SKIPPED
    assert Path("scores.csv").read_bytes() == expected


def test_one_image_and_stdout_keep_no_journal(
    here: Path, score: Score, monkeypatch: Any, capsys: Any
) -> None:
    def opened(*_: Any) -> None:
        raise AssertionError("a journal")

    monkeypatch.setattr("evaluation.scoring.Journal", opened)
    assert score("faces/id0", out="-") == EXIT_DONE
    assert score("faces/id0/0.jpg", out="one.csv") == EXIT_DONE
    assert score("faces/id0", out="/dev/null") == EXIT_DONE
    with pytest.raises(AssertionError, match="a journal"):
        score("faces/id0")


def test_where_no_journal_can_be_written_the_scores_are(
    here: Path, score: Score, capsys: Any
) -> None:
    Path("scores.csv.journal").mkdir()
    assert score("faces/id0") == EXIT_DONE
    assert len(table()) == 4
    assert "this run cannot be resumed" in capsys.readouterr().err
