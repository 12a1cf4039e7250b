"""Searching folders for faces, and the lists that gen_datalist writes of them."""

import os
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from common.cli import EXIT_DONE, EXIT_SKIPPED
from dataset.find import find_images, walk_images
from dataset.left_out import Skipped
from dataset.lists import LABEL, LABELPATH, read_labelpath, read_table
from dataset.path_lists import listed_paths, read_paths
from generate_pseudo_labels.gen_datalist import main as gen_datalist
from sdd_fiqa.errors import UserError

PNG = b"\x89PNG\r\n\x1a\n" + bytes(20)


def touch(root: Path, *names: str) -> Path:
    for name in names:
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(PNG)
    return root


def records(folder: Path) -> list[tuple[str, int]]:
    table, identities = read_labelpath(folder / LABELPATH)
    return list(zip(table.paths(), identities.tolist(), strict=True))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Entries(list["os.DirEntry[str]"]):
    """What os.scandir gives."""

    def __enter__(self) -> "Entries":
        return self

    def __exit__(self, *_: object) -> None:
        return None


def test_order_is_that_of_names_not_of_the_file_system(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["b/2.jpg", "b/10.jpg", "a/z.png", "B/1.jpg", "a/\u00e9.jpg", "a/e.jpg", "a/Z.jpg"]
    touch(here / "faces", *names)
    assert gen_datalist("faces") == EXIT_DONE
    expected = [
        ("faces/B/1.jpg", 0),
        ("faces/a/Z.jpg", 1),
        ("faces/a/e.jpg", 1),
        ("faces/a/z.png", 1),
        ("faces/a/\u00e9.jpg", 1),
        ("faces/b/10.jpg", 2),
        ("faces/b/2.jpg", 2),
    ]
    assert records(here / "annotations") == expected
    assert "7 images of 3 identities" in capsys.readouterr().out
    # Whatever order the file system gives, and whatever else was typed for the same root.
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: Entries(reversed(list(scandir(folder)))))
    assert gen_datalist("faces//", out_dir=Path("again")) == EXIT_DONE
    assert (here / "again" / LABELPATH).read_bytes() == (
        here / "annotations" / LABELPATH
    ).read_bytes()
    label = (here / "annotations" / LABEL).read_text()
    assert label == "".join(path.removeprefix("faces") + "\n" for path, _ in expected)


def test_identity_is_the_part_that_was_asked_for(here: Path) -> None:
    touch(here / "r", "p1/day1/a.jpg", "p1/day2/b.jpg", "p2/day1/c.jpg", "p2/d.jpg", "e.jpg")
    by_folder = {"p1/day1/a.jpg": 1, "p1/day2/b.jpg": 2, "p2/d.jpg": 0, "p2/day1/c.jpg": 1}
    for index, expected in [
        (-2, by_folder),
        (0, {"p1/day1/a.jpg": 0, "p1/day2/b.jpg": 0, "p2/d.jpg": 1, "p2/day1/c.jpg": 1}),
        (-3, {"p1/day1/a.jpg": 0, "p1/day2/b.jpg": 0, "p2/day1/c.jpg": 1}),
        (1, {"p1/day1/a.jpg": 0, "p1/day2/b.jpg": 1, "p2/day1/c.jpg": 0}),
    ]:
        gen_datalist("r", id_key_index=index)
        found = {path.removeprefix("r/"): number for path, number in records(here / "annotations")}
        assert found.keys() == expected.keys()
        pairs = {(found[path], expected[path]) for path in found}
        assert len(pairs) == len(set(found.values())) == len(set(expected.values()))


def test_roots_of_every_spelling(here: Path) -> None:
    touch(here / "r", "a/1.jpg")
    for typed in ("r", "./r", "r/", str(here / "r"), "r/../r"):
        gen_datalist(typed)
        assert records(here / "annotations") == [(f"{typed.rstrip('/')}/a/1.jpg", 0)]
        assert (here / "annotations" / LABEL).read_text() == "/a/1.jpg\n"
    os.chdir(here / "r")
    gen_datalist(".")
    assert records(here / "r/annotations") == [("./a/1.jpg", 0)]


def test_what_is_no_image_is_counted_by_kind(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = touch(here / "r", "a/1.JPG", "a/2.jpeg", "a/.hidden.jpg", "a/.thumbs/1.jpg", "top.jpg")
    for name in ("a/notes.txt", "a/more.TXT", "b/README", "b/x.npy"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("no image")
    assert gen_datalist("r") == EXIT_DONE
    out = capsys.readouterr().out
    for line in [
        "left out: .npy files: 1",
        "left out: .txt files: 2",
        "left out: files without a suffix: 1",
        "left out: hidden files: 1",
        "left out: hidden folders: 1",
        "left out: images outside an identity folder: 1",
    ]:
        assert line in out.splitlines()
    assert [path for path, _ in records(here / "annotations")] == ["r/a/1.JPG", "r/a/2.jpeg"]


def test_links_are_followed_but_not_round(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = touch(here / "r", "a/1.jpg")
    touch(here / "elsewhere", "2.jpg")
    (root / "b").symlink_to(here / "elsewhere")
    (root / "a/up").symlink_to(root)
    (root / "a/self").symlink_to("self")
    (root / "a/self.jpg").symlink_to("self.jpg")
    (root / "a/dead.jpg").symlink_to("nowhere.jpg")
    (root / "a/link.jpg").symlink_to("1.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        os.chdir(root / "a")  # a socket's path must be short
        server.bind("socket.jpg")
        os.chdir(here)
        assert gen_datalist("r") == EXIT_SKIPPED
    paths = [path for path, _ in records(here / "annotations")]
    assert paths == ["r/a/1.jpg", "r/a/link.jpg", "r/b/2.jpg"]
    out = capsys.readouterr().out
    assert "left out: links that lead back to a folder above them: 1" in out
    assert "links to nothing, and other things that are no file: 3 ('r/a/dead.jpg'" in out


def test_names_that_need_care(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = [
        'it\'s "quoted", yes/a b  c.jpg',
        "\u674e\u96f7/\u00e9\U0001f600.jpg",
        "#1 100%/;$(x).jpg",
    ]
    root = touch(here / "r", *good)
    bad = ["t/ta\tb.jpg", "t/line\nbreak.jpg", "t/return\r.jpg", os.fsdecode(b"t/caf\xe9.jpg")]
    touch(root, *bad)
    assert gen_datalist("r") == EXIT_SKIPPED
    assert sorted(path for path, _ in records(here / "annotations")) == sorted(
        f"r/{name}" for name in good
    )
    out = capsys.readouterr().out
    assert "left out: names with a TAB, a line break or no UTF-8 (rename them): 4 ('r/t/caf" in out
    assert len(out.splitlines()) == 2


def test_too_small_identities_are_left_out(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    touch(here / "r", "a/1.jpg", "b/1.jpg", "b/2.jpg", "c/1.jpg", "d/1.jpg", "d/2.jpg", "d/3.jpg")
    assert gen_datalist("r", min_images_per_id=2) == EXIT_DONE
    assert [number for _, number in records(here / "annotations")] == [0, 0, 1, 1, 1]
    assert "left out: identities with fewer than 2 images: 2" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"no identity has 9 images \(the largest has 3\)"):
        gen_datalist("r", min_images_per_id=9)


def test_only_what_a_list_names(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    touch(here / "r", "a/1.jpg", "a/2.jpg", "b/1.jpg")
    (here / "list").write_text("/b/1.jpg\t7\nr/a/2.jpg\na/9.jpg\r\n")
    assert gen_datalist("r", image_list_file=Path("list")) == EXIT_SKIPPED
    assert records(here / "annotations") == [("r/b/1.jpg", 0), ("r/a/2.jpg", 1)]
    assert "left out: listed files that do not exist: 1 ('r/a/9.jpg')" in capsys.readouterr().out
    (here / "twice").write_text("b/1.jpg\na/2.jpg\nb/1.jpg\n")
    with pytest.raises(UserError, match=r"twice:3: b/1\.jpg is listed twice; list it once"):
        gen_datalist("r", image_list_file=Path("twice"))
    # What the script wrote is such a list.
    gen_datalist("r")
    (here / "annotations" / LABEL).rename(here / "label")
    before = records(here / "annotations")
    assert gen_datalist("r", image_list_file=Path("label")) == EXIT_DONE
    assert records(here / "annotations") == before


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        ([], {}, "r: no images found .it is empty.; expected r/<identity>/<image>"),
        (["a/x.txt"], {}, "r: no images found .left out: .txt files: 1."),
        (["1.jpg", "2.jpg"], {}, "r: none of its images has a part -2 .*; put each person"),
        (
            ["a/1.jpg", "a/2.jpg", "b/3.jpg"],
            {"id_key_index": -3},
            r"has a part -3 .* try --id-key-index -2 \(of a/1.jpg and b/3.jpg, -2 takes a and b\)",
        ),
        (["a/1.jpg"], {"id_key_index": -1}, "--id-key-index -1: is the image's own name"),
        (["a/1.jpg"], {"min_images_per_id": 0}, "--min-images-per-id 0: must be 1 or more"),
        (
            ["a/1.jpg"],
            {"image_list_file": Path("none")},
            "none: does not exist; check its name",
        ),
    ],
)
def test_roots_without_a_list_overwrite_nothing(
    here: Path, names: Any, options: Any, message: Any
) -> None:
    (here / "r").mkdir()
    touch(here / "r", *names)
    for text in here.glob("r/*/*.txt"):
        text.write_text("no image")
    touch(here / "annotations", LABEL, LABELPATH)
    with pytest.raises(UserError, match=message):
        gen_datalist("r", **options)
    assert sorted(os.listdir(here / "annotations")) == [LABEL, LABELPATH]
    assert (here / "annotations" / LABELPATH).read_bytes() == PNG


def test_roots_that_are_none(here: Path) -> None:
    with pytest.raises(UserError, match="--data-root nowhere: does not exist; name the folder"):
        gen_datalist("nowhere")
    touch(here, "file.txt")
    with pytest.raises(UserError, match=r"--data-root file\.txt: is a file"):
        gen_datalist("file.txt")
    touch(here / "r", "a/1.jpg")
    for out_dir in ("file.txt", "file.txt/below", "/proc/none/deeper/still"):
        with pytest.raises(UserError, match=f"{out_dir}.*: cannot be written"):
            gen_datalist("r", out_dir=Path(out_dir))


def test_a_folder_that_cannot_be_read(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(here / "r", "a/1.jpg", "b/1.jpg")
    scandir = os.scandir

    def refuse(folder: str) -> object:
        if folder.endswith("/a"):
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    skipped = Skipped()
    assert list(walk_images("r", skipped)) == ["r/b/1.jpg"]
    assert skipped.lines() == ["left out: folders that cannot be read: 1 ('r/a')"]


def test_files_folders_patterns_and_lists_are_inputs(here: Path) -> None:
    root = touch(here / "r", "a/1.jpg", "a/2.jpg", "b/3.png", "b/noSuffix", "b/[x].jpg")
    (root / "a/readme.txt").write_text("not a list of images\n")
    (here / "list.txt").write_text("anything/at all.jpg\t5\nr/a/1.jpg\n")
    skipped = Skipped()

    def found(*inputs: str) -> list[str]:
        return list(find_images(inputs, skipped))

    assert found("r/b/3.png", "r/a") == ["r/b/3.png", "r/a/1.jpg", "r/a/2.jpg"]
    assert found("r/a/", "r/a/2.jpg")[-1] == "r/a/2.jpg"
    assert found("r/*/?.*") == ["r/a/1.jpg", "r/a/2.jpg", "r/b/3.png"]
    assert found("r/b/[x].jpg") == ["r/b/[x].jpg"]
    assert found("list.txt") == ["anything/at all.jpg", "r/a/1.jpg"]
    skipped.expected.clear()
    # A pattern takes the images among what it matches: a note among faces is no list.
    assert found("r/a/*") == ["r/a/1.jpg", "r/a/2.jpg"]
    assert skipped.expected == {".txt files": 1}
    assert found("r/b/noS*") == found("r/b/noSuffix") == ["r/b/noSuffix"]
    assert found("r/**/*.jpg") == ["r/a/1.jpg", "r/a/2.jpg", "r/b/[x].jpg"]
    assert found("r/**") == found("r")  # its folders are not walked beside their files
    assert found("r*") == ["r/a/1.jpg", "r/a/2.jpg", "r/b/3.png", "r/b/[x].jpg"]
    assert list(skipped.problems) == ["images whose names do not say so (rename them)"]
    skipped.problems.clear()
    touch(root, "b/t\tb.jpg")
    assert found("r/b/*.jpg", "r/b/t\tb.jpg") == ["r/b/[x].jpg"]
    assert sum(skipped.problems.values()) == 2


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("nowhere", "nowhere: no such file or folder"),
        ("", ": no such file or folder"),
        ("pipe", "pipe: is a pipe, a socket or a device; name a file"),
        ("loop", "loop: cannot be read .Too many levels"),
        ("no*where", "no[*]where: matches no file"),
        ("empty", "empty: no images found .it is empty."),
        ("texts", "texts: no images found .left out: .txt files: 1."),
        ("texts/*", "texts/[*]: no images found .left out: .txt files: 1."),
        ("empty.txt", "empty.txt: is empty"),
        ("texts/a.txt", "texts/a.txt: is neither an image nor a list of images"),
        ("binary.dat", "binary.dat:1: is not UTF-8 text"),
        ("zeros.dat", "zeros.dat: is not a readable image or text list"),
    ],
)
def test_inputs_that_are_none(here: Path, typed: Any, message: Any) -> None:
    (here / "empty").mkdir()
    (here / "texts").mkdir()
    (here / "texts/a.txt").write_text("a note\n")
    (here / "empty.txt").touch()
    os.mkfifo(here / "pipe")
    (here / "loop").symlink_to("loop")
    (here / "binary.dat").write_bytes(b"\xff\xd9\xfe" * 9)
    (here / "zeros.dat").write_bytes(bytes(9))
    with pytest.raises(UserError, match=message):
        list(find_images([typed], Skipped()))


def test_other_files_that_a_shell_names_end_no_search(here: Path) -> None:
    touch(here, "photos/a.jpg")
    (here / "photos/empty.txt").touch()
    (here / "photos/Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0" + bytes(99))
    (here / "photos/notes.txt").write_text("a note\n")
    (here / "photos/list.txt").write_text("photos/a.jpg\n")
    skipped = Skipped()
    named = sorted(f"photos/{entry.name}" for entry in (here / "photos").iterdir())
    assert list(find_images(named, skipped)) == ["photos/a.jpg", "photos/a.jpg"]
    (line,) = skipped.lines()
    assert line.startswith("left out: files that are neither images nor lists of images: 3")
    assert "'photos/Thumbs.db', 'photos/empty.txt', 'photos/notes.txt'" in line
    (here / "photos/list.txt").write_text("gone.jpg\n")  # a list, though a wrong one
    with pytest.raises(UserError, match="none of its images exists"):
        list(find_images(named, skipped))


def test_a_list_whose_paths_lead_nowhere(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(here, "faces/a.jpg", "sub/x.txt")
    (here / "sub/list.txt").write_text("faces/gone.jpg\nfaces/a.jpg\n")
    listed = ["faces/gone.jpg", "faces/a.jpg"]
    assert list(find_images(["sub/list.txt"], Skipped())) == listed
    monkeypatch.chdir(here / "sub")
    with pytest.raises(UserError, match=r"cd \S+ \(and the list as (\S+)\)$") as error:
        list(find_images(["list.txt"], Skipped()))
    words = str(error.value).split()
    monkeypatch.chdir(words[words.index("cd") + 1])
    assert list(find_images([words[-1].rstrip(")")], Skipped())) == listed
    (here / "lost.txt").write_text("/gone/a.jpg\n")
    with pytest.raises(UserError, match=r"exists, for example /gone/a\.jpg; write the list"):
        list(find_images(["lost.txt"], Skipped()))


def test_a_name_that_is_not_utf8_may_be_typed(here: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    touch(here, name, f"{name}.jpg")
    skipped = Skipped()
    with pytest.raises(UserError, match=r"no images found \(left out: names with a TAB"):
        list(find_images([name, f"{name}.jpg"], skipped))
    assert len(read_table(_list(here)).starts) == 1


def _list(folder: Path) -> Path:
    file = folder / os.fsdecode(b"l\xefst")
    file.write_text("a.jpg\n")
    return file


VIDEO = b"\0\0\0\x18ftypisom" + bytes(20)


def test_pictures_and_videos_that_are_left_out_are_problems(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By their first bytes, or else by their suffix; no list holds them."""
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    root = touch(here / "r", "a/1.jpg", "a/2.dat", "a/3")
    for name, content in [
        ("a/clip.mp4", b""),
        ("a/clip", VIDEO),
        ("a/song.m4a", b"\0\0\0\x18ftypM4A "),
        ("a/raw.nef", b"II*\0" + bytes(20)),
        ("a/layers", b"8BPS" + bytes(20)),
        ("a/old.PCX", b"\n\5\1\x08"),
        ("a/notes.txt", b"clip.mp4"),
    ]:
        (root / name).write_bytes(content)
    assert gen_datalist("r") == EXIT_SKIPPED
    assert [path for path, _ in records(here / "annotations")] == ["r/a/1.jpg"]
    assert capsys.readouterr().out.splitlines()[1:] == [
        "left out: .m4a files: 1",
        "left out: .txt files: 1",
        "left out: images whose names do not say so (rename them): 2 ('r/a/2.dat', 'r/a/3')",
        "left out: pictures of a kind that is not read (save them as JPEG or PNG): 3 "
        "('r/a/layers', 'r/a/old.PCX', 'r/a/raw.nef')",
        "left out: videos (eval.py scores them with --frames-per-second 2): 2 "
        "('r/a/clip', 'r/a/clip.mp4')",
    ]
    unread: dict[str, str] = {}
    found = list(find_images(["r", "r/a/clip.mp4"], Skipped(unread=unread)))
    assert len(found) == 9 and set(found) == {"r/a/1.jpg", *unread}
    assert unread["r/a/clip"] == "is a video: add --frames-per-second 2"

    touch(root, "a/png.heic")
    (root / "a/phone.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(20))
    (here / "list").write_text("a/1.jpg\na/3\na/clip\na/phone.HEIC\na/png.heic\n")
    assert gen_datalist("r", image_list_file=Path("list")) == EXIT_SKIPPED
    listed = ["r/a/1.jpg", "r/a/3", "r/a/png.heic"]
    assert [path for path, _ in records(here / "annotations")] == listed
    assert capsys.readouterr().out.splitlines()[1:] == [
        "left out: HEIC pictures (pip install pillow-heif): 1 ('r/a/phone.HEIC')",
        "left out: videos (eval.py scores them with --frames-per-second 2): 1 ('r/a/clip')",
    ]


@pytest.mark.parametrize(
    "content",
    [
        b"a.jpg\r\n\r\n# two of them\r\nb c.jpg\t7\r\n#c.jpg\r\n   \n",
        b"\xef\xbb\xbfa.jpg\nb c.jpg\n\n#c.jpg",
        "a.jpg\r\nb c.jpg\r\n#c.jpg\r\n".encode("utf-16"),
        b"path,score,status\na.jpg,1.0,ok\nb c.jpg#1,2.0,ok\nb c.jpg#2,,no\n#c.jpg,,no\n",
    ],
    ids=["windows", "utf-8", "utf-16", "scores.csv"],
)
def test_lists_as_people_write_them(here: Path, content: bytes) -> None:
    touch(here, "b c.jpg", "#c.jpg")
    (here / "list.txt").write_bytes(content)
    expected = ["a.jpg", "b c.jpg", "#c.jpg"]
    assert list(find_images(["list.txt"], Skipped())) == expected
    assert list(read_paths(here / "list.txt").paths()) == expected


def test_a_member_in_a_scores_csv_keeps_its_key(here: Path) -> None:
    (here / "a.rec").touch()
    text = "path,score,status\na.rec#1,1.0,ok\na.rec#2#1,2.0,ok\na.rec#2#2,2.0,ok\n"
    (here / "list.csv").write_text(text)
    assert list(listed_paths("list.csv")) == ["a.rec#1", "a.rec#2"]
