"""WebDataset tars: identities as the library groups them, images by their place."""

import io
import json
import tarfile
from pathlib import Path

import pytest

from dataset.containers import read_bytes
from dataset.containers.listing import containers_of, identified_members
from dataset.containers.tar import TarImages, members
from dataset.left_out import Skipped
from sdd_fiqa.errors import UnreadableImage, UserError
from sdd_fiqa.storage import File

LONG = "a" * 120 + "/" + "b" * 150 + ".jpg"  # more than an old header holds


def tar_of(path: Path, files: list[tuple[str, bytes]], kind: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=kind) as tar:
        for name, content in files:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            entry.mtime = 1.5  # a fraction: a header of its own in the pax format
            tar.addfile(entry, io.BytesIO(content))
    return path


FILES = [
    ("000.cls", b"7\n"),
    ("000.jpg", b"image 0"),
    ("d/001.png", b"image 1"),
    ("d/001.json", json.dumps({"identity": "ann", "width": 3}).encode()),
    ("002.txt", b"no image"),
    ("003.JPG", b"image 3"),
    ("003.cls", b"7"),
    (LONG, b"image 4"),
    (LONG.replace(".jpg", ".json"), b"12"),
]


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_members_are_read_by_their_place(tmp_path: Path, kind: int) -> None:
    path = tar_of(tmp_path / "a.tar", FILES, kind)
    tar = TarImages(path)
    for name, content in reversed(FILES):
        assert tar.read(name) == content
        assert read_bytes(f"{path}#{name}") == content
    with pytest.raises(UnreadableImage, match=r"no member '004\.jpg'"):
        tar.read("004.jpg")


def linked(path: Path, links: list[tuple[str, bytes, str]]) -> Path:
    """A tar of d/0.jpg, links to it, and d/0.cls."""
    with tarfile.open(path, "w") as tar:
        folder, image, label = map(tarfile.TarInfo, ("d", "d/0.jpg", "d/0.cls"))
        folder.type, image.size, label.size = tarfile.DIRTYPE, 5, 1
        tar.addfile(folder)
        tar.addfile(image, io.BytesIO(b"image"))
        tar.addfile(label, io.BytesIO(b"7"))
        for name, kind, target in links:
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, target
            tar.addfile(link)
    return path


LINKS = [
    ("d/1.jpg", tarfile.LNKTYPE, "d/0.jpg"),
    ("d/1.cls", tarfile.SYMTYPE, "0.cls"),
    ("e/2.jpg", tarfile.SYMTYPE, "../d/1.jpg"),
    ("e/2.cls", tarfile.SYMTYPE, "./../d/1.cls"),
    ("3.jpg", tarfile.SYMTYPE, "/etc/passwd"),
    ("4.jpg", tarfile.SYMTYPE, "../../etc/passwd"),
    ("5.jpg", tarfile.SYMTYPE, "5.jpg"),
    ("6.jpg", tarfile.LNKTYPE, "gone.jpg"),
]


def test_links_are_read_or_counted(tmp_path: Path) -> None:
    path = linked(tmp_path / "a.tar", LINKS)
    skipped = Skipped()
    assert list(TarImages(path).images(skipped)) == ["d/0.jpg", "d/1.jpg", "e/2.jpg"]
    kind = "links to nothing in the tar, and files with holes"
    assert skipped.problems == {kind: 4}
    assert skipped.examples[kind] == [f"{path}#{n}.jpg" for n in range(3, 7)]
    tar = TarImages(path)
    assert {tar.read(name) for name in ("d/0.jpg", "d/1.jpg", "e/2.jpg")} == {b"image"}
    for number in range(3, 7):
        with pytest.raises(UnreadableImage, match="a link to nothing in the tar"):
            tar.read(f"{number}.jpg")


def test_links_have_identities(tmp_path: Path) -> None:
    found = TarImages(linked(tmp_path / "a.tar", LINKS)).identified(Skipped())
    assert list(found) == [("d/0.jpg", "7"), ("d/1.jpg", "7"), ("e/2.jpg", "7")]


def test_hidden_members_are_left_out_as_in_folders(tmp_path: Path) -> None:
    names = ["./0.jpg", "d/._0.jpg", ".d/1.jpg", "../2.jpg", "d/...jpg", ".jpg"]
    path = tar_of(tmp_path / "a.tar", [(name, b"image") for name in names])
    skipped = Skipped()
    assert list(TarImages(path).images(skipped)) == ["./0.jpg", "../2.jpg"]
    assert skipped.expected == {"hidden files": 4}
    assert not skipped.problems


def test_the_last_of_two_members_of_a_name(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "a.tar", [("a.jpg", b"old"), ("b.jpg", b"b"), ("a.jpg", b"new")])
    assert TarImages(path).read("a.jpg") == b"new"


def test_identities_from_cls_and_json(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "a.tar", FILES)
    assert list(TarImages(path).identified(Skipped())) == [
        ("000.jpg", "7"),
        ("d/001.png", "ann"),
        ("003.JPG", "7"),
        (LONG, "12"),
    ]


def test_the_library_finds_the_same_samples(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    path = str(tmp_path / "a.tar")
    with webdataset.TarWriter(path) as writer:
        for n in range(20):
            writer.write({"__key__": f"k{n:03}", "jpg": b"image %d" % n, "cls": n // 3})
    theirs = [(s["jpg"], s["cls"]) for s in webdataset.WebDataset(path, shardshuffle=False)]
    tar = TarImages(path)
    ours = tar.identified(Skipped())
    assert [(tar.read(image), identity.encode()) for image, identity in ours] == theirs
    assert len(theirs) == 20


def test_samples_without_an_identity_are_reported(tmp_path: Path) -> None:
    files = [
        ("0.jpg", b"no identity file"),
        ("1.cls", b" "),
        ("1.jpg", b"empty"),
        ("2.json", b'{"caption": "x"}'),
        ("2.jpg", b"no key"),
        ("3.json", b"[" * 100_000),
        ("3.jpg", b"not JSON"),
        ("4.json", b"true"),
        ("4.jpg", b"no number"),
        ("5.cls", b"1"),
        ("5.jpg", b"good"),
        ("5.jpg", b"again"),
        ("6\t.cls", b"1"),
        ("6\t.jpg", b"a TAB"),
    ]
    path = tar_of(tmp_path / "a.tar", files)
    skipped = Skipped()
    assert list(identified_members([str(path)], None, skipped)) == [(f"{path}#5.jpg", "1")]
    problem = "samples without .cls or .json (unpack a tar of folders of people)"
    assert skipped.problems[problem] == 1
    assert skipped.problems["samples whose .cls is empty"] == 1
    assert sum(n for kind, n in skipped.problems.items() if "whose .json" in kind) == 3
    assert sum(n for kind, n in skipped.problems.items() if "TAB" in kind) == 1
    assert "duplicate file name" in skipped.examples["damaged places"][0]


def test_videos_in_a_tar_are_named(tmp_path: Path) -> None:
    files = [("clip.mp4", b""), ("0.jpg", b"x"), ("clip", b"\0\0\0\x18ftypisom"), ("0.cls", b"1")]
    path = tar_of(tmp_path / "a.tar", files)
    skipped = Skipped(unread={})
    assert list(TarImages(path).images(skipped)) == ["clip.mp4", "0.jpg", "clip"]
    assert skipped.unread is not None
    assert list(skipped.unread) == [f"{path}#clip.mp4", f"{path}#clip"]
    skipped = Skipped()
    assert list(identified_members([str(path)], None, skipped)) == [(f"{path}#0.jpg", "1")]
    assert list(skipped.examples.values()) == [[f"{path}#clip.mp4", f"{path}#clip"]]


@pytest.mark.parametrize("cut", ["in data", "in a header"])
def test_a_damaged_tar_keeps_what_stands_before(tmp_path: Path, cut: str) -> None:
    path = tar_of(
        tmp_path / "a.tar", [(f"{n}.jpg", b"x" * 600) for n in range(5)], tarfile.GNU_FORMAT
    )
    content = bytearray(path.read_bytes())
    place = 3 * (512 + 1024)
    if cut == "in data":
        del content[place + 700 :]
    else:
        content[place : place + 512] = b"?" * 512
    path.write_bytes(content)
    found = list(members(File(path)))
    assert [m.name for m in found if not isinstance(m, str)][:3] == ["0.jpg", "1.jpg", "2.jpg"]
    assert isinstance(found[-1], str)
    assert "is damaged at offset" in found[-1]
    assert TarImages(path).read("2.jpg") == b"x" * 600


def with_header(path: Path, number: int, field: slice, value: bytes) -> Path:
    """Other bytes in the header of a member of 600 bytes, with the right sum."""
    content = bytearray(path.read_bytes())
    header = content[number * 1536 : number * 1536 + 512]
    header[field] = value
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    content[number * 1536 : number * 1536 + 512] = header
    path.write_bytes(content)
    return path


SIZE, TYPE = slice(124, 136), slice(156, 157)
PLAIN = [(f"{n}.jpg", b"x" * 600) for n in range(3)]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (SIZE, b"\xff" * 10 + b"00", "a size of -"),
        (SIZE, b"\xff" * 12, "a size of -1 bytes"),
        (SIZE, b"\x80" + b"\0" * 7 + b"\0\1\0\0", "bytes later"),
        (SIZE, b"\x80" + b"\x7f" * 11, "bytes later"),
        (SIZE, b"77777777777\0", "bytes later"),
    ],
)
def test_a_size_is_checked_against_the_file(
    tmp_path: Path, field: slice, value: bytes, message: str
) -> None:
    path = tar_of(tmp_path / "a.tar", PLAIN, tarfile.GNU_FORMAT)
    with_header(path, 2, field, value)
    skipped = Skipped()
    assert list(TarImages(path).images(skipped))[:2] == ["0.jpg", "1.jpg"]
    assert message in skipped.examples["damaged places"][0]
    assert TarImages(path).read("1.jpg") == b"x" * 600
    with pytest.raises(UnreadableImage):
        TarImages(path).read("2.jpg")


@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K", b"S"])
@pytest.mark.parametrize(
    "size", [b"\xff" * 12, b"\x80" + b"\0" * 4 + b"\x7f" * 7, b"77777777777\0"]
)
def test_headers_that_announce_too_much_cost_no_memory(
    tmp_path: Path, kind: bytes, size: bytes
) -> None:
    path = tar_of(tmp_path / "a.tar", PLAIN, tarfile.GNU_FORMAT)
    with_header(with_header(path, 1, SIZE, size), 1, TYPE, kind)
    found = list(members(File(path)))
    assert [m.name for m in found if not isinstance(m, str) and not m.issparse()] == ["0.jpg"]
    assert "is damaged at offset" in str(found[-1])


@pytest.mark.parametrize("size", ["-512", "1" + "0" * 30, "nan"])
def test_a_size_in_a_pax_header(tmp_path: Path, size: str) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for n in range(2):
            entry = tarfile.TarInfo(f"{n}.jpg")
            entry.size, entry.pax_headers = 600, {"size": size} if n else {}
            tar.addfile(entry, io.BytesIO(b"x" * 600))
    found = list(members(File(tmp_path / "a.tar")))
    assert not isinstance(found[0], str)
    assert isinstance(found[-1], str) or size == "nan"  # which tarfile takes for none


def test_an_archive_after_another_is_read(tmp_path: Path) -> None:
    first = tar_of(tmp_path / "a.tar", [("0.jpg", b"a"), ("1.jpg", b"b")]).read_bytes()
    second = tar_of(tmp_path / "b.tar", [("2.jpg", b"c"), ("1.jpg", b"new")]).read_bytes()
    path = tmp_path / "both.tar"
    path.write_bytes(first + second)
    skipped = Skipped()
    assert list(TarImages(path).images(skipped)) == ["0.jpg", "1.jpg", "2.jpg", "1.jpg"]
    assert not skipped.problems
    assert [TarImages(path).read(f"{n}.jpg") for n in range(3)] == [b"a", b"new", b"c"]
    path.write_bytes(first + b"something else" * 40)
    found = list(members(File(path)))
    assert "no header there" in str(found[-1])


def test_what_is_no_tar(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"something else " * 100)
    with pytest.raises(UnreadableImage, match="no tar that can be read at random"):
        TarImages(tmp_path / "a.tar").read("1.jpg")
    with pytest.raises(UserError, match="unpack it"):
        containers_of("a.tar.gz")


def test_which_tars_a_root_names(tmp_path: Path) -> None:
    for name in ("s-00.tar", "s-01.tar", "s-02.tar", "other.rec"):
        (tmp_path / name).touch()
    root = str(tmp_path)
    assert containers_of(f"{root}/s-01.tar") == [f"{root}/s-01.tar"]
    shards = [f"{root}/s-0{n}.tar" for n in range(3)]
    assert containers_of(root) == shards
    assert containers_of(f"{root}/s-*.tar") == shards
    assert containers_of(root + "/s-{00..01}.tar") == shards[:2]
    assert containers_of(root + "/s-{00,02}.tar") == [shards[0], shards[2]]
    with pytest.raises(UserError, match=r"s-03\.tar: no such file"):
        containers_of(root + "/s-{02..03}.tar")
    with pytest.raises(UserError, match="names more than 1,000,000 files"):
        containers_of(root + "/s-{0..9999999999}.tar")
    with pytest.raises(UserError, match="no such file"):
        containers_of(root + "/s-{\u00b2..\u00b3}.tar")
    with pytest.raises(UserError, match="only tars are taken several at a time"):
        containers_of(root + "/*")
    (tmp_path / "ann").mkdir()
    assert containers_of(root) == []  # identity folders: a folder of faces
