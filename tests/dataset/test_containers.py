"""Every stage takes a .rec, tars and a .bin as it takes a folder, with the same results."""

import csv
import io
import os
import pickle
import re
import shutil
import struct
import subprocess
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import tyro

# First, so that its limit on the pixels of an image stands before cv2 is imported.
from sdd_fiqa.errors import UnreadableImage  # isort: skip
from dataset.images import read_image  # isort: skip
import cv2

from common.cli import EXIT_DONE
from common.distributed import ProcessGroup
from dataset import containers
from dataset.containers import (
    FORMATS,
    close_container,
    read_bytes,
    read_run,
    split_member,
)
from dataset.containers.base import Container
from dataset.containers.pack import pack_images, write_records
from dataset.containers.rec import RecordFile
from dataset.containers.rec_format import index_path, read_index
from dataset.find import find_images
from dataset.left_out import Skipped
from dataset.lists import read_labelpath, read_table
from dataset.loader import batches
from evaluation.edc.verification_lists import read_pairs
from generate_pseudo_labels.gen_datalist import main as gen_datalist
from sdd_fiqa.errors import UserError

ROOT = Path(__file__).parents[2]
GEN_DATALIST = "generate_pseudo_labels/gen_datalist.py"
EXTRACT = "generate_pseudo_labels/extract_embedding/extract_feats.py"
IDENTITIES, EACH = 5, 4


Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def run(run_script: Run) -> Run:
    """Runs a script in a folder; the one that lists in this process, where it starts at once."""

    def run(folder: Path, script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        if script != GEN_DATALIST:
            return run_script(script, *arguments, cwd=folder)
        out, errors, before = io.StringIO(), io.StringIO(), os.getcwd()
        os.chdir(folder)
        try:
            with redirect_stdout(out), redirect_stderr(errors):
                code = tyro.cli(gen_datalist, args=[*map(str, arguments)])
        except UserError as error:
            code = 1
            errors.write(f"error: {error}\n")
        finally:
            os.chdir(before)
            for path in list(containers._opened):  # a process of its own would have none open
                close_container(path)
        return subprocess.CompletedProcess([], code, out.getvalue(), errors.getvalue())

    return run


def face(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    pixels = cv2.resize(rng.integers(0, 255, (7, 7, 3), np.uint8), (112, 112))
    return cv2.imencode(".jpg", pixels)[1].tobytes()


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory, run: Run) -> Path:
    """A folder with `faces/<identity>/<n>.jpg`, and the same faces as faces.tar and faces.bin."""
    folder = tmp_path_factory.mktemp("faces")
    images: list[bytes] = []
    with tarfile.open(folder / "faces.tar", "w") as tar:
        for number in range(IDENTITIES * EACH):
            images.append(face(number))
            path = folder / f"faces/p{number // EACH}/{number % EACH}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(images[-1])
            identity = b"person %d" % (number // EACH)
            for name, content in ((f"{number:03}.cls", identity), (f"{number:03}.jpg", images[-1])):
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    pairs = [(0, 1), (1, 2), (0, 5), (4, 5), (7, 19)]
    same = [first // EACH == second // EACH for first, second in pairs]
    content = pickle.dumps(([images[i] for pair in pairs for i in pair], same), 2)
    (folder / "faces.bin").write_bytes(content)
    listed = run(folder, GEN_DATALIST, "--data-root", "faces", "--to-rec", "faces.rec")
    assert (listed.returncode, listed.stderr.count("Traceback")) == (0, 0), listed.stderr
    assert listed.stdout.splitlines() == [
        "annotations/DATA.labelpath: 20 images of 5 identities",
        "faces.rec: 20 images",
    ]
    return folder


def contents(labelpath: Path, folder: Path) -> list[tuple[bytes, int]]:
    table, identities = read_labelpath(labelpath)
    paths = [str(folder / path) for path in table.paths()]
    return list(zip(map(read_bytes, paths), identities.tolist(), strict=True))


def test_a_packed_folder_is_laid_out_as_insightface_does(faces: Path) -> None:
    records = RecordFile(faces / "faces.rec")
    assert records.record(0).labels == (21.0, 26.0)
    ranges = [records.record(key).labels for key in range(21, 26)]
    assert ranges == [(1.0 + 4 * n, 5.0 + 4 * n) for n in range(5)]
    data = (faces / "faces.rec").read_bytes()
    for key in range(1, 21):
        record = records.record(key)
        (number,) = struct.unpack_from("<Q", data, record.offset + 16)
        assert (record.identity, number) == ((key - 1) // EACH, key)
        assert record.image == face(key - 1)


@pytest.mark.parametrize("container", ["faces.rec", "faces.tar"])
def test_the_list_of_a_container_is_that_of_the_folder(
    faces: Path, container: str, run: Run
) -> None:
    out = f"ann_{container}"
    listed = run(faces, GEN_DATALIST, "--data-root", container, "--out-dir", out)
    assert listed.returncode == 0, listed.stderr
    assert listed.stdout == f"{out}/DATA.labelpath: 20 images of 5 identities\n"
    assert contents(faces / out / "DATA.labelpath", faces) == contents(
        faces / "annotations/DATA.labelpath", faces
    )
    first = next(read_table(faces / out / "DATA.labelpath").paths())
    label = next(read_table(faces / out / "DATA.label").paths())
    assert first == f"{container}{label}"
    assert first == {"faces.rec": "faces.rec#1", "faces.tar": "faces.tar#000.jpg"}[container]


def test_tars_in_a_folder_and_one_identity_in_two_of_them(
    faces: Path, tmp_path: Path, run: Run
) -> None:
    (tmp_path / "shards").mkdir()
    for name in ("0.tar", "1.tar"):
        shutil.copy(faces / "faces.tar", tmp_path / "shards" / name)
    listed = run(tmp_path, GEN_DATALIST, "--data-root", "shards")
    assert listed.stdout == "annotations/DATA.labelpath: 40 images of 5 identities\n"
    labels = list(read_table(tmp_path / "annotations/DATA.label").paths())
    assert (labels[0], labels[20]) == ("/0.tar#000.jpg", "/1.tar#000.jpg")


def test_a_bin_gives_a_list_and_pairs(faces: Path, run: Run) -> None:
    listed = run(faces, GEN_DATALIST, "--data-root", "faces.bin", "--out-dir", "ann_bin")
    assert listed.stdout.splitlines() == [
        "ann_bin/DATA.labelpath: 7 images of 4 identities",
        "ann_bin/pairs.txt: 5 pairs",
    ]
    table, identities = read_labelpath(faces / "ann_bin/DATA.labelpath")
    assert identities.tolist() == [0, 0, 0, 1, 1, 2, 3]
    as_text, unknown = read_pairs(faces / "ann_bin/pairs.txt", table)
    assert as_text.same.tolist() == [True, True, False, True, False] and unknown == 0
    from_bin, unknown = read_pairs(faces / "faces.bin", table)
    for column in range(3):
        assert np.array_equal(as_text[column], from_bin[column])
    assert unknown == 0


def test_listed_records_only_and_small_identities(faces: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "some.txt").write_text("faces.rec#2\nfaces.rec#1\nfaces.rec#9\nx.jpg\n")
    flags = ["--image-list-file", tmp_path / "some.txt", "--min-images-per-id", 2]
    listed = run(faces, GEN_DATALIST, "--data-root", "faces.rec", "--out-dir", tmp_path, *flags)
    assert listed.returncode == 3
    assert "2 images of 1 identity" in listed.stdout
    assert "lines that do not name a record" in listed.stdout
    assert list(read_table(tmp_path / "DATA.labelpath").paths()) == ["faces.rec#2", "faces.rec#1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data-root", "none.rec"], "none.rec: no such file"),
        (["--data-root", "faces.rec", "--id-key-index", 0], "names identities itself"),
        (["--data-root", "faces.tar", "--image-list-file", "x"], "goes with a folder or a .rec"),
        (["--data-root", "faces", "--to-rec", "x.bin"], "must end in .rec"),
        (["--data-root", "faces.rec", "--to-rec", "faces.rec"], "is the file that is read"),
        (["--data-root", "./faces.rec", "--to-rec", "./faces.rec"], "is the file that is read"),
        (["--data-root", "faces.rec", "--image-list-file", "twice"], ":3: faces.rec#2 is listed"),
        (["--data-root", "empty.rec"], "holds no record"),
        (["--data-root", "empty.tar"], "empty.tar: "),
    ],
)
def test_wrong_arguments_are_one_line(
    faces: Path, arguments: list[object], message: str, run: Run
) -> None:
    for name in ("empty.rec", "empty.tar"):
        (faces / name).touch()
    (faces / "twice").write_text("faces.rec#2\nfaces.rec#1\nfaces.rec#2\n")
    before = (faces / "faces.rec").read_bytes()
    done = run(faces, GEN_DATALIST, *arguments, "--out-dir", "ann_wrong")
    assert done.returncode == 1
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not list(faces.glob("ann_wrong/*"))
    assert (faces / "faces.rec").read_bytes() == before


def test_damaged_records_are_listed_as_left_out(faces: Path, tmp_path: Path, run: Run) -> None:
    content = bytearray((faces / "faces.rec").read_bytes())
    _, offsets = read_index(faces / "faces.idx")
    content[offsets[7]] ^= 255
    content[offsets[9] + 12 : offsets[9] + 16] = np.float32(0.5).tobytes()
    (tmp_path / "train.rec").write_bytes(content)
    shutil.copy(faces / "faces.idx", tmp_path / "train.idx")
    listed = run(tmp_path, GEN_DATALIST, "--data-root", "train.rec")
    assert listed.returncode == 3
    assert "18 images of 5 identities" in listed.stdout
    assert f"record 7 at offset {offsets[7]}: no record begins there" in listed.stdout
    assert f"record 9 at offset {offsets[9]}: its label, 0.5" in listed.stdout
    # Without its index: what follows the damage is not read, and record 0 misses these images.
    (tmp_path / "train.idx").unlink()
    listed = run(tmp_path, GEN_DATALIST, "--data-root", "train.rec")
    where = f"offset {offsets[6]}: its length leads to {offsets[7]}, where no record begins"
    assert f"places: 1 ('train.rec: {where}; what follows needs train.idx')" in listed.stdout
    assert "20 announced, 5 found" in listed.stdout


def test_images_that_cannot_be_packed_are_left_out(faces: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(
        f"{faces}/faces/p0/0.jpg\t1\nnone.jpg\t1\n{faces}/faces/p1/1.jpg\t0\n"
    )
    skipped = Skipped()
    assert pack_images(tmp_path / "list.txt", tmp_path / "a.rec", skipped) == 2
    assert skipped.problems == {"images that cannot be packed": 1}
    records = RecordFile(tmp_path / "a.rec")
    assert [records.read("1"), records.read("2")] == [face(EACH + 1), face(0)]  # by identity
    (tmp_path / "none.txt").write_text("none.jpg\t1\n")
    with pytest.raises(UserError, match="none of its images can be read"):
        pack_images(tmp_path / "none.txt", tmp_path / "a.rec", Skipped())
    (tmp_path / "many.txt").write_text(f"{faces}/faces/p0/0.jpg\t16777216\n")
    with pytest.raises(UserError, match="identities must be 0 to 16777215"):
        pack_images(tmp_path / "many.txt", tmp_path / "a.rec", Skipped())
    assert len(RecordFile(tmp_path / "a.rec")) == 5  # what stood there still does


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("workers", [1, 3])
def test_ranks_and_workers_read_every_record_once(faces: Path, size: int, workers: int) -> None:
    keys = range(1, IDENTITIES * EACH + 1)
    listed = faces / f"union_{size}_{workers}.txt"
    listed.write_text("".join(f"{faces}/faces.rec#{key}\n" for key in keys))
    table = read_table(listed)
    rows: list[int] = []
    for rank in range(size):
        share = ProcessGroup(rank, size).share(len(table))
        for batch in batches(table, share, 3, workers):
            assert not batch.failures
            rows += batch.rows.tolist()
            for row, pixels in zip(batch.rows.tolist(), batch.faces, strict=True):
                path = faces / f"faces/p{row // EACH}/{row % EACH}.jpg"
                assert np.array_equal(pixels, read_image(path))
    assert rows == list(range(len(table)))


def test_the_chain_from_a_rec_equals_the_chain_from_a_folder(faces: Path, run: Run) -> None:
    import torch

    from models.checkpoints import save_network
    from models.networks import build_network

    torch.manual_seed(0)
    about = {"architecture": "MFN", "head": "recognition"}
    save_network(faces / "mfn.pth", build_network("MFN", recognition=True), about)
    listed = run(faces, GEN_DATALIST, "--data-root", "faces.rec", "--out-dir", "ann")
    assert listed.returncode == 0
    for out in ("annotations", "ann"):
        flags = ["--weights", "mfn.pth", "--backbone", "MFN", "--out-dir", out, "--device", "cpu"]
        done = run(faces, EXTRACT, *flags)
        assert done.returncode == 0, done.stderr
    features = [
        np.load(faces / out / "feats_npy/Embedding_Features.npy") for out in ("annotations", "ann")
    ]
    assert np.array_equal(*features)
    assert np.abs(features[0]).sum() > 0
    labels = "".join(f"faces.rec#{key}\t{key * 4}\n" for key in range(1, 21))
    (faces / "ann/quality_pseudo_labels.txt").write_text(labels)
    flags = ["--img-list", "ann/quality_pseudo_labels.txt", "--backbone", "MFN", "--epochs", "1"]
    done = run(faces, "train.py", *flags, "--batch-size", 8, "--val-identities", 0.2)
    assert done.returncode == 0, done.stderr
    assert "16 images to learn from, 4 held out" in done.stdout
    assert "skipped" not in done.stderr


def test_eval_and_its_page_show_faces_of_containers(faces: Path, run: Run) -> None:
    import torch

    from models.checkpoints import save_network
    from models.networks import build_network

    torch.manual_seed(1)
    about = {"architecture": "MFN", "head": "quality"}
    save_network(faces / "quality.pth", build_network("MFN"), about)
    inputs = ["faces", "faces.rec", "faces.tar", "faces.bin", "faces.rec#3"]
    flags = ["--model", "quality.pth", "--report", "page.html", "--device", "cpu"]
    done = run(faces, "eval.py", *inputs, *flags, "--batch-size", 4)
    assert done.returncode == 0, done.stderr
    with open(faces / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    scores = {row["path"]: row["score"] for row in rows}
    assert len(rows) == 20 + 20 + 20 + 7 + 1
    for number in range(20):
        as_file = scores[f"faces/p{number // EACH}/{number % EACH}.jpg"]
        for path in (f"faces.rec#{number + 1}", f"faces.tar#{number:03}.jpg"):
            assert float(scores[path]) == pytest.approx(float(as_file), abs=2e-3)
    assert float(scores["faces.bin#9"]) == pytest.approx(float(scores["faces.rec#20"]), abs=2e-3)
    page = (faces / "page.html").read_text()
    assert page.count("data:image/jpeg;base64,") == len(rows)
    links = re.findall(r'href="([^"#]+)"', page)
    assert len(links) == 20  # the plain files; a member of a container is no file to open
    assert all(link.startswith("faces/p") for link in links)


def test_a_damaged_record_is_scored_as_an_unreadable_image(faces: Path, tmp_path: Path) -> None:
    path = str(tmp_path / "a.rec")
    with write_records(path) as records:
        for image in (face(0), b"no image", face(1)):
            records.add((0.0,), image)
    content = bytearray(Path(path).read_bytes())
    _, offsets = read_index(index_path(path))
    content[offsets[2] + 4 : offsets[2] + 8] = b"\xff\xff\xff\x1f"
    Path(path).write_bytes(content)
    (tmp_path / "list.txt").write_text("".join(f"{path}#{key}\n" for key in range(4)))
    (batch,) = batches(read_table(tmp_path / "list.txt"), range(4), 4, 2)
    assert batch.failures == {
        1: "is not an image that can be decoded",
        2: f"record 2 at offset {offsets[2]}: its length, 536870911 bytes, goes beyond the end of "
        "the file",
        3: "the index has no record 3",
    }


def test_what_a_scan_finds_damaged_is_left_out_of_the_scores(
    faces: Path, tmp_path: Path, run: Run
) -> None:
    content = bytearray((faces / "faces.rec").read_bytes())
    _, offsets = read_index(index_path(faces / "faces.rec"))
    content[offsets[3] : offsets[3] + 4] = b"XXXX"
    (tmp_path / "damaged.rec").write_bytes(content)
    done = run(tmp_path, "eval.py", "damaged.rec", "--device", "cpu")
    assert done.returncode == 3, done.stderr
    assert f"left out: damaged places: 1 ('damaged.rec: offset {offsets[2]}: " in done.stderr


def test_which_paths_name_members(tmp_path: Path) -> None:
    odd = tmp_path / "a.tar#b.jpg"
    odd.write_bytes(face(0))
    assert split_member(str(odd)) is None  # a plain file with such a name
    assert read_image(odd).shape == (112, 112, 3)
    assert split_member("train.rec#1") == ("train.rec", "1")
    assert split_member("a/t.tar#x#y.jpg") == ("a/t.tar", "x#y.jpg")
    assert split_member("song #1.jpg") is None
    for path in ("none.rec#1", "none.bin#0"):
        with pytest.raises(UnreadableImage, match="No such file or directory"):
            read_image(tmp_path / path)
    (tmp_path / "bad.bin").write_bytes(b"x")
    with pytest.raises(UnreadableImage, match="is not a pickled set of pairs"):
        read_image(tmp_path / "bad.bin#0")


def test_only_images_of_one_container_are_read_in_one_go(tmp_path: Path) -> None:
    path, other = f"{tmp_path}/a.rec", f"{tmp_path}/b.rec"
    for name in (path, other):
        with write_records(name) as records:
            for key in range(10):
                records.add((0.0,), f"{name} {key}".encode())
        assert read_bytes(f"{name}#0") == f"{name} 0".encode()  # now it is open
    run = [f"{path}#{key}" for key in range(10)]
    together = [bytes(image) for image in read_run(run) if image is not None]
    assert together == [read_bytes(name) for name in run]
    for odd in (f"{other}#2", "2.jpg", f"{path}#", f"{path}##2", f"{path}#2.jpg", f"x{path}#2"):
        assert list(read_run([f"{path}#1", odd])) == [None, None]
        assert list(read_run([odd, f"{path}#1"])) == [None, None]
    assert list(read_run([f"{path}#1", f"2{path}#2", f"{path}#3"])) == [None] * 3


def test_a_closed_container_is_read_anew(tmp_path: Path) -> None:
    path = str(tmp_path / "a.rec")
    for image in (b"first", b"another"):
        with write_records(path) as records:
            records.add((0.0,), image)
        close_container(path)
        assert read_bytes(f"{path}#0") == image


class ZipImages(Container):
    """A new format, as a user would add it."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        self.zip = zipfile.ZipFile(self.path)

    def read(self, member: str) -> bytes:
        return self.zip.read(member)

    def images(self, skipped: Skipped) -> Iterator[str]:
        return iter(self.zip.namelist())

    def identified(self, skipped: Skipped) -> Iterator[tuple[str, str]]:
        return ((name, name.split("/")[0]) for name in self.zip.namelist())

    def pairs(self) -> Iterator[tuple[str, str, bool]]:
        first, *others = self.zip.namelist()
        return ((first, other, first[:2] == other[:2]) for other in others)


def test_a_new_format_is_a_class_and_an_entry(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FORMATS, ".zip", ZipImages)
    monkeypatch.chdir(faces)
    packed = tmp_path / "faces.zip"
    assert gen_datalist("faces", tmp_path / "folder") == EXIT_DONE
    with zipfile.ZipFile(packed, "w") as target:
        for path in read_table(tmp_path / "folder/DATA.labelpath").paths():
            target.write(path, path.removeprefix("faces/"))
    assert gen_datalist(str(packed), tmp_path / "zip") == EXIT_DONE
    of_zip = contents(tmp_path / "zip" / "DATA.labelpath", faces)
    assert of_zip == contents(tmp_path / "folder" / "DATA.labelpath", faces)
    assert list(find_images([str(packed)], Skipped())) == [
        f"{packed}#{name}" for name in zipfile.ZipFile(packed).namelist()
    ]
    table, identities = read_labelpath(tmp_path / "zip" / "DATA.labelpath")
    pairs, lost = read_pairs(packed, table)
    same = identities[pairs.first] == identities[pairs.second]
    assert pairs.same.tolist() == same.tolist() and not lost
