"""extract_feats as a user runs it: one process or two, killed and started again."""

import json
import os
import shutil
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from common.cli import EXIT_DONE, EXIT_SKIPPED
from common.distributed import ProcessGroup
from dataset.embedding_writer import FeatureWriter
from dataset.images import read_face
from dataset.lists import read_table
from generate_pseudo_labels.extract_embedding import extract_feats as extract_module
from generate_pseudo_labels.extract_embedding.extract_feats import main as extract_feats
from generate_pseudo_labels.extract_embedding.extract_feats import run
from generate_pseudo_labels.gen_datalist import main as gen_datalist
from models.checkpoints import load_network
from sdd_fiqa.errors import UserError

SCRIPT = "generate_pseudo_labels/extract_embedding/extract_feats.py"
BATCH = ("--batch-size", 5)
CPU = ("--device", "cpu", "--precision", "fp32", "--backbone", "MFN")
FILES = ("Embedding_Features.json", "Embedding_Features.npy", "Embedding_Norms.npy")


@pytest.fixture
def here(tmp_path: Path, faces: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with faces listed; two of them cannot be read."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(faces, tmp_path / "faces")
    (tmp_path / "faces/id1/0.jpg").write_bytes(b"text")
    assert gen_datalist("faces") == EXIT_DONE
    (tmp_path / "faces/id4/2.jpg").unlink()
    return tmp_path


def embed(weights: dict[str, Path], **options: Any) -> int:
    usual: dict[str, Any] = {"backbone": "MFN", "device": "cpu", "precision": "fp32"}
    return extract_feats(str(weights["recognition"]), **{**usual, "batch_size": 5, **options})


def test_images_that_are_not_aligned_are_noted_before_the_work(
    here: Path,
    weights: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(
        extract_module, "doubt_alignment", lambda table: f"{len(table)} look like photos"
    )
    for said in (1, 0):  # nothing is left to do, the second time
        assert embed(weights) == EXIT_SKIPPED
        assert capsys.readouterr().err.count("note: 24 look like photos\n") == said


def results(folder: Path) -> list[bytes]:
    assert sorted(os.listdir(folder)) == sorted(FILES)
    return [(folder / name).read_bytes() for name in FILES]


def test_rows_are_the_networks_in_list_order(
    here: Path, weights: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert embed(weights) == EXIT_SKIPPED
    said = capsys.readouterr().out
    assert "annotations/feats_npy/Embedding_Features.npy: 24 rows of 512, by " in said
    assert "unreadable: faces/id1/0.jpg: is not an image that can be decoded" in said
    assert "unreadable: faces/id4/2.jpg: No such file or directory" in said
    assert "unreadable: 2 images, all named in annotations/feats_npy/Embedding_Features" in said
    folder = here / "annotations/feats_npy"
    found, norms = np.load(folder / FILES[1]), np.load(folder / FILES[2])
    paths = list(read_table("annotations/DATA.labelpath").paths())
    good = [row for row, path in enumerate(paths) if path not in said]
    assert len(good) == 22
    faces = np.stack([read_face(paths[row]) for row in good])
    x = (torch.from_numpy(faces).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
    with torch.inference_mode():
        expected = load_network(weights["recognition"], recognition=True)[1](x).numpy()
    assert np.allclose(norms[good], np.linalg.norm(expected, axis=1), rtol=1e-4)
    unit = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.abs(found[good] - unit).max() < 1e-3
    bad = [row for row in range(24) if row not in good]
    assert not found[bad].any()
    assert not norms[bad].any()
    about = json.loads((folder / FILES[0]).read_text())
    assert [entry["row"] for entry in about["unreadable"]] == bad
    assert about["list"]["rows"] == about["rows_done"] == 24
    # Already done: the same answer, and no file touched.
    before = [(folder / name).stat().st_mtime_ns for name in FILES]
    assert embed(weights, batch_size=7) == EXIT_SKIPPED
    assert capsys.readouterr().out == said
    assert [(folder / name).stat().st_mtime_ns for name in FILES] == before
    # Other work: mirrored faces are added.
    assert embed(weights, flip=True) == EXIT_SKIPPED
    with torch.inference_mode():
        mirrored = load_network(weights["recognition"], recognition=True)[1](x.flip(3)).numpy()
    both = expected + mirrored
    unit = both / np.linalg.norm(both, axis=1, keepdims=True)
    assert np.abs(np.load(folder / FILES[1])[good] - unit).max() < 1e-3
    assert "to try them again,\nremove that file and run this again\n" in said
    (folder / FILES[0]).unlink()
    for row in bad:
        shutil.copyfile(paths[good[0]], paths[row])
    assert embed(weights) == EXIT_DONE


def test_two_processes_give_the_same_bytes(
    here: Path,
    weights: dict[str, Path],
    run_script: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    torch.set_num_threads(1)
    assert embed(weights) == EXIT_SKIPPED
    said = capsys.readouterr().out
    alone = results(here / "annotations/feats_npy")
    shutil.rmtree(here / "annotations/feats_npy")
    arguments = ("--weights", weights["recognition"], *CPU, *BATCH)
    two = run_script(SCRIPT, *arguments, cwd=here, processes=2)
    assert two.returncode == 1  # torchrun has one exit code for whatever is not 0
    assert two.stdout.endswith(said), two.stderr  # some versions of gloo speak there first
    assert results(here / "annotations/feats_npy") == alone
    again = run_script(SCRIPT, *arguments, cwd=here, processes=2)
    assert again.stdout.endswith(said), again.stderr


class Machine(ProcessGroup):
    """A thread that stands for one of two machines, with cores of its own."""

    meeting, counts = threading.Barrier(2), [0, 0]

    def barrier(self) -> None:
        self.meeting.wait()

    def total(self, count: int) -> int:
        self.counts[self.rank] = count
        self.meeting.wait()
        return sum(self.counts)


def test_machines_of_unlike_cores_leave_no_row_out(here: Path) -> None:
    table = read_table("annotations/DATA.labelpath")
    about: dict[str, Any] = {"list": {"sha256": table.sha256, "rows": len(table)}}

    def embed(rank: int, at_once: int) -> FeatureWriter:
        recogniser: Any = SimpleNamespace(
            batch_size=at_once, begin=lambda faces: lambda: np.ones((len(faces), 4), np.float32)
        )
        writer = FeatureWriter(here / "feats", len(table), 4, about)
        run(table, recogniser, writer, Machine(rank, 2), None, 1, False)
        return writer

    with ThreadPoolExecutor(2) as machines:
        first, second = (machines.submit(embed, rank, cores) for rank, cores in ((0, 8), (1, 3)))
        second.result()
        assert len(first.result().finish(table)) == 2
    assert np.count_nonzero(np.load(here / "feats" / FILES[2])) == len(table) - 2


def test_killed_in_the_middle_it_goes_on(
    here: Path, weights: dict[str, Path], stalled_script: Callable[..., Any]
) -> None:
    """kill -9 after some batches; the rerun does the others, and the bytes are the same."""
    assert embed(weights, batch_size=1) == EXIT_SKIPPED
    folder = here / "annotations/feats_npy"
    expected = results(folder)
    shutil.rmtree(folder)
    paths = list(read_table("annotations/DATA.labelpath").paths())
    arguments = ("--weights", weights["recognition"], *CPU, "--batch-size", 1, "--num-workers", 1)
    stalled = stalled_script(SCRIPT, *arguments, cwd=here, at=paths[9])
    # Two batches are decoded ahead of the one in use, and one waits to be written: with the 10th
    # begun, 6 are.
    stalled.process.send_signal(signal.SIGKILL)
    stalled.process.communicate()
    assert stalled.process.returncode == -signal.SIGKILL
    assert not (folder / FILES[1]).exists()
    assert (folder / "Embedding_Features.npy.0.journal").read_text().count("start") >= 6
    # What is done is not read again: take those images away, and their rows still come.
    for path in paths[:6]:
        (here / path).unlink()
    assert embed(weights, batch_size=1) == EXIT_SKIPPED
    assert results(folder) == expected


def test_nothing_readable_is_an_error(
    here: Path, weights: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for image in (here / "faces").glob("*/*"):
        image.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"none of its images could be read .*current folder"):
        embed(weights)
    assert os.listdir(here / "annotations/feats_npy") == []
    shutil.move(here / "faces", here / "elsewhere")
    with pytest.raises(UserError, match=r"none of its images exists, for example faces/"):
        embed(weights)


def test_what_is_refused(here: Path, weights: dict[str, Path]) -> None:
    for option in ("batch_size", "num_workers"):
        with pytest.raises(UserError, match=rf"--{option.replace('_', '-')} 0: must be 1 or more"):
            embed(weights, **{option: 0})
    with pytest.raises(UserError, match="is a MFN network, not the R_50 that was asked for"):
        embed(weights, backbone="R_50")
    with pytest.raises(UserError, match="quality head; a recognition head is needed"):
        extract_feats(str(weights["quality"]), backbone="MFN")
    with pytest.raises(UserError, match=r"none/DATA\.labelpath: does not exist; run gen_datalist"):
        embed(weights, out_dir=Path("none"))
    with pytest.raises(UserError, match="no such file, and no known name"):
        extract_feats("w600k")
    assert not (here / "annotations/feats_npy").exists()
