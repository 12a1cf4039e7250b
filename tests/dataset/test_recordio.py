"""The .rec format: hand-assembled bytes, laws of the writer, and what a damage does."""

import io
import os
import random
import struct
import sys
from array import array
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset.containers.pack import write_records
from dataset.containers.rec import RecordFile
from dataset.containers.rec_format import MARK, Damaged, content_at, frame, index_path, read_index
from dataset.left_out import Skipped
from sdd_fiqa.errors import UnreadableImage, UserError


def by_hand() -> tuple[bytes, list[int], list[bytes]]:
    """A file put together byte by byte from the format's description, not by the writer."""
    images = [
        b"plain",
        b"abcd" + b"\x0a\x23\xd7\xce" + b"efg",  # the magic at 28: aligned, so it cuts the record
        b"ab" + b"\x0a\x23\xd7\xce" + b"cd",  # at 26: not aligned, no cut
    ]
    start = "0a23d7ce"  # 0xced7230a, little-endian
    # Record 0: 24 + 8 bytes; flag 2, label 0.0, ids 0, 0; labels 4.0, 6.0.
    data = bytes.fromhex(
        start + "20000000" + "02000000" + "00000000" + "00" * 16 + "00008040" + "0000c040"
    )
    offsets = [0]
    # Record 1: 24 + 5 bytes and 3 of padding; flag 0, label 7.0, id 1.
    offsets.append(len(data))
    data += bytes.fromhex(start + "1d000000" + "00000000" + "0000e040" + "01" + "00" * 15)
    data += images[0] + b"\0\0\0"
    # Record 2: first part (1 << 29 | 28), last part (3 << 29 | 3); flag 2: labels 8.0 and 0.5.
    offsets.append(len(data))
    header = bytes.fromhex("02000000" + "00000000" + "02" + "00" * 15 + "00000041" + "0000003f")
    data += bytes.fromhex(start + "24000020") + header + b"abcd"
    data += bytes.fromhex(start + "03000060") + b"efg\0"
    # Record 3: whole, 24 + 8 bytes.
    offsets.append(len(data))
    data += bytes.fromhex(start + "20000000" + "00000000" + "00001041" + "03" + "00" * 15)
    data += images[2]
    # Records 4 and 5: the keys of the two identities, [1, 3) and [3, 4).
    for labels in ("0000803f00004040", "0000404000008040"):
        offsets.append(len(data))
        data += bytes.fromhex(start + "20000000" + "02000000" + "00" * 20 + labels)
    return data, offsets, images


def written(folder: Path, with_index: bool = True) -> Path:
    data, offsets, _ = by_hand()
    path = folder / "train.rec"
    path.write_bytes(data)
    if with_index:
        lines = [f"{key}\t{offset}\n" for key, offset in enumerate(offsets)]
        index_path(path).write_text("".join(lines))
    return path


def run_of(records: RecordFile, *keys: int | str) -> list[bytes | None]:
    run = records.read_run([str(key) for key in keys])
    return [None if image is None else bytes(image) for image in run]


@pytest.mark.parametrize("with_index", [True, False])
def test_a_file_assembled_by_hand_is_read(tmp_path: Path, with_index: bool) -> None:
    path = written(tmp_path, with_index)
    _, offsets, images = by_hand()
    records = RecordFile(path)
    assert records.offsets.tolist() == (offsets if with_index else offsets[:4])
    assert [records.read(str(key)) for key in (1, 2, 3)] == images
    assert records.record(2).labels == (8.0, 0.5)
    assert [records.record(key).identity for key in (1, 2, 3)] == [7, 8, 9]
    assert records.record(0).labels == (4.0, 6.0)
    assert [key for key, _ in records.records(Skipped())] == [1, 2, 3]
    lacks = "record 4 at offset .* holds no image" if with_index else "no record 4"
    with pytest.raises(UnreadableImage, match=lacks):
        records.read("4")
    with pytest.raises(UnreadableImage, match="no record 6"):
        records.read("6")
    with pytest.raises(UnreadableImage, match="no record key"):
        records.read("1 ")


def test_the_missing_index_is_rebuilt_and_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, with_index=False)
    RecordFile(path)
    keys, offsets = read_index(index_path(path))
    assert keys.tolist() == list(range(4))  # the others have the id 0, and no image
    assert offsets.tolist() == by_hand()[1][:4]
    assert "4 records found by one scan" in capsys.readouterr().err


def unordered(path: Path, ids: list[int]) -> dict[int, bytes]:
    """A .rec with an index of the keys 5, 2, 9, 3 in this order; returns the images by key."""
    images = {key: b"image %d" % key for key in (5, 2, 9, 3)}
    with write_records(path) as records:
        for key, (number, image) in zip(ids, images.items(), strict=True):
            records.add((float(number),), image, key)
        records.keys = array("q", images)
    return images


def test_a_rebuilt_index_has_the_records_own_ids(tmp_path: Path) -> None:
    path = tmp_path / "a.rec"
    images = unordered(path, [5, 2, 9, 3])
    index = index_path(path).read_bytes()
    index_path(path).unlink()
    for _ in range(2):  # rebuilt, and as it was kept
        records = RecordFile(path)
        assert {int(key): records.read(key) for key in records.images(Skipped())} == images
    assert sorted(index_path(path).read_bytes().splitlines()) == sorted(index.splitlines())


@pytest.mark.parametrize("ids", [[0, 0, 0, 0], [5, 2, 9, 5], [1, 2, 3, 10**18]])
def test_without_ids_a_rebuilt_index_serves_new_lists_alone(
    tmp_path: Path, ids: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.rec"
    images = unordered(path, ids)
    assert RecordFile(path).read("3") == images[3]  # by its index
    index_path(path).unlink()
    records = RecordFile(path)
    assert "whose ids are not unique: lists made before do not fit" in capsys.readouterr().err
    places = [str(10**12 + place) for place in range(4)]
    for again in range(3):  # rebuilt, as it was kept, and where it cannot be kept
        assert list(records.images(Skipped())) == places
        assert [records.read(place) for place in places] == list(images.values())
        assert run_of(records, *places) == list(images.values())
        with pytest.raises(UnreadableImage, match="no record 3; it is a rebuilt one: get the lost"):
            records.read("3")
        assert run_of(records, 2, 3) == [None, None]
        if again:
            index_path(path).unlink()
            index_path(path).symlink_to("nowhere/a.idx")
        records = RecordFile(path)


@pytest.mark.parametrize("count", [1, 3, 40])
def test_an_index_of_another_file_is_said_to_be_one(tmp_path: Path, count: int) -> None:
    path = written(tmp_path)
    with write_records(tmp_path / "other.rec") as other:
        for number in range(count):
            other.add((0.0,), b"x" * (number % 7 + 100), number)
    index_path(path).write_bytes(
        b"".join(index_path(tmp_path / "other.rec").read_bytes().splitlines(True)[1:]) or b"0\t12\n"
    )
    with pytest.raises(UserError, match=r"train\.idx: belongs to another file than .*train\.rec"):
        RecordFile(path)


@pytest.mark.parametrize(
    ("before", "what"),
    [([0, 1, 2, 4, 3], "no record"), ([0, 1, 2], "another record"), ([0, 1, 2, 3, 4], "")],
)
def test_an_index_older_than_its_file_is_noted(
    tmp_path: Path, before: list[int], what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path, indexes = tmp_path / "a.rec", []
    for numbers in (before, range(5)):
        with write_records(path) as records:
            for number in numbers:
                records.add((0.0,), bytes(40 * number + 4), number)
        indexes.append(index_path(path).read_bytes())
    index_path(path).write_bytes(indexes[0])
    RecordFile(path)
    said = capsys.readouterr().err
    note = f"a.idx: seems to be older than {path}, or of another file: {what} begins at"
    assert (note in said) == bool(what)


@pytest.mark.parametrize(
    ("keys", "ids", "said"),
    [
        ((5, 2, 9, 3), (1, 2, 3, 4), "record 3 has the id 4; if it is, get both again, or"),
        ((0, 1, 2, 3), (0, 1, 2, 2), ""),  # not unique
        ((0, 1, 2, 3), (0, 0, 1, 2), "record 2 has the id 1"),
        ((0, 1, 2, 3, 4, 5), (0, 1, 2, 3, 0, 0), ""),
        (
            (0, 1, 2, 3, 4, 5),
            (0, 1, 2, 3),
            "of another file: it names 2 records beyond",
        ),
    ],
)
def test_an_index_with_the_offsets_of_another_file(
    tmp_path: Path,
    keys: tuple[int, ...],
    ids: tuple[int, ...],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "a.rec"
    with write_records(path) as records:
        for number in ids:
            records.add((0.0,), b"x" * 40, number)
    size = path.stat().st_size // len(ids)
    index_path(path).write_text("".join(f"{key}\t{n * size}\n" for n, key in enumerate(keys)))
    RecordFile(path)
    note = capsys.readouterr().err
    assert said in note and bool(note) == bool(said)


def test_where_the_index_cannot_be_kept_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise UserError("read-only")

    monkeypatch.setattr("dataset.containers.rec.write_index", refuse)
    assert len(RecordFile(written(tmp_path, with_index=False))) == 4
    assert "every process will scan" in capsys.readouterr().err


@given(st.lists(st.sampled_from([MARK, MARK[:3], b"\n", b"ab", b"\0" * 4, b"xyz1"]), max_size=12))
def test_framing_and_reading_are_inverse(pieces: list[bytes]) -> None:
    content = b"".join(pieces)
    data = frame(content)
    assert len(data) % 4 == 0
    # Wherever the magic stands aligned in the file, a part begins: that is what a scan relies on.
    marks = [at for at in range(0, len(data), 4) if data[at : at + 4] == MARK]
    cuts = sum(content[at : at + 4] == MARK for at in range(0, len(content) - 3, 4))
    assert len(marks) >= cuts + 1
    for more in (b"", MARK, MARK + b"more"):
        stream = io.BytesIO(data + more)
        assert content_at(stream, 0, len(data + more)) == (content, len(data))


@settings(max_examples=25)
@given(st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=20), st.randoms())
def test_round_trip_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, images: list[bytes], rng: random.Random
) -> None:
    path = tmp_path_factory.mktemp("rec") / "a.rec"
    with write_records(path) as records:
        for number, image in enumerate(images):
            assert records.add((float(number),), image) == number
    back = RecordFile(path)
    order = list(range(len(images)))
    rng.shuffle(order)
    assert [back.read(str(key)) for key in order] == [images[key] for key in order]
    run = run_of(back, *order)
    assert all(found in (None, images[key]) for key, found in zip(order, run, strict=True))
    assert run_of(back, *sorted(order)) == images
    in_order = [record for _, record in back.records(Skipped())]
    assert [not isinstance(r, Damaged) and r.image for r in in_order] == images
    index = index_path(path).read_bytes()
    index_path(path).unlink()
    rebuilt = RecordFile(path)
    assert rebuilt.offsets.tolist() == back.offsets.tolist()
    assert index_path(path).read_bytes() == index


# What is done to record 2 (of 6), and what the reader must then say.
DAMAGES = {
    "magic": (0, b"\0\0\0\0", "no record begins there"),
    "length beyond the file": (4, struct.pack("<I", 1 << 20), "beyond the end of the file"),
    "length into the next record": (4, struct.pack("<I", 70), "reaches into the next record"),
    "length too short": (4, struct.pack("<I", 30), "no record begins"),
    "shorter than a header": (4, struct.pack("<I", 8), "no record begins"),
    "part without the first": (4, struct.pack("<I", 2 << 29 | 36), "other parts are missing"),
    "more labels than bytes": (8, struct.pack("<I", 1000), "announces 1000 labels"),
    "label not finite": (32, struct.pack("<f", np.nan), "not a finite number"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_record_is_named_and_the_others_are_read(tmp_path: Path, damage: str) -> None:
    at, change, message = DAMAGES[damage]
    path = written(tmp_path)
    data, offsets, images = by_hand()
    place = offsets[2] + at
    path.write_bytes(data[:place] + change + data[place + len(change) :])
    records = RecordFile(path)
    with pytest.raises(Damaged, match=rf"record 2 at offset {offsets[2]}: .*{message}"):
        records.read("2")
    assert [records.read(str(key)) for key in (1, 3)] == [images[0], images[2]]
    assert run_of(records, 1, 2, 3) == [images[0], None, images[2]]
    kinds = [isinstance(record, Damaged) for _, record in records.records(Skipped())]
    assert kinds == [False, True, False]
    # Without an index a scan finds the records before it, under the same keys.
    index_path(path).unlink()
    for _ in range(2):  # the second time as well: an index would not tell of the damage
        scanned = RecordFile(path)
        assert str(offsets[2]) in scanned.damage
        assert scanned.offsets.tolist() == offsets[: 1 if damage == "magic" else 2]
        if damage != "magic":  # else record 1 leads to no record, and is not trusted
            assert scanned.read("1") == images[0]
        with pytest.raises(UnreadableImage, match="no record 3"):
            scanned.read("3")
    assert not index_path(path).exists()


def test_records_that_stand_together_are_read_in_one_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.rec"
    images = [bytes([number]) * 1000 for number in range(32)]
    with write_records(path) as records:
        for image in images:
            records.add((0.0,), image)
    back = RecordFile(path)
    reads = []
    read = back.file.read

    def counted(offset: int, size: int) -> bytes:
        reads.append(offset)
        return read(offset, size)

    monkeypatch.setattr(back.file, "read", counted)

    assert run_of(back, *range(16, 32)) == images[16:]  # the last record included
    assert run_of(back, 3, 4, 7, 6, 8) == [images[key] for key in (3, 4, 7, 6, 8)]  # with a gap
    assert run_of(back, 5, 4) == [images[5], images[4]]
    assert len(reads) == 3
    assert run_of(back, 0, 9) == [None, None]  # too far apart: it would read what nobody wants
    assert run_of(back, 31, 32) == [None, None]
    assert run_of(back, 29, 32, 31) == [None, None, None]
    for odd in ("", "\u0662", "x", "1_0", "+1"):
        assert run_of(back, 1, odd) == [None, None]
    assert len(reads) == 3


def test_keys_before_the_first_are_no_records_counted_from_the_end(tmp_path: Path) -> None:
    with write_records(tmp_path / "a.rec") as records:
        for key in (5, 6, 7):
            records.add((0.0,), b"%d" % key, key)
    back = RecordFile(tmp_path / "a.rec")
    assert run_of(back, 5, 6, 7) == [b"5", b"6", b"7"]
    for key in (3, 4):
        assert run_of(back, 5, key, 7) == [None] * 3
        assert run_of(back, key, 7) == [None] * 2


def test_records_that_stand_in_another_order_than_their_keys(tmp_path: Path) -> None:
    with write_records(tmp_path / "a.rec") as records:
        for key in (1, 0, 2, 3):
            records.add((0.0,), b"%d" % key, key)
    back = RecordFile(tmp_path / "a.rec")
    images = [b"0", b"1", b"2", b"3"]
    assert [back.read(str(key)) for key in range(4)] == images
    run = run_of(back, 0, 1, 2, 3)
    assert all(found in (None, image) for found, image in zip(run, images, strict=True))


def test_a_file_cut_off_loses_its_last_record_only(tmp_path: Path) -> None:
    path = written(tmp_path)
    data, offsets, images = by_hand()
    path.write_bytes(data[: offsets[3] + 20])
    records = RecordFile(path)
    assert run_of(records, 1, 2, 3, 4) == [images[0], None, None, None]
    assert records.read("2") == images[1]
    with pytest.raises(UnreadableImage, match="beyond the end of the file"):
        records.read("3")
    with pytest.raises(UnreadableImage, match="is cut off, by another record or the end"):
        records.read("5")


@pytest.mark.parametrize("label", [-1.0, 0.5])
def test_a_label_that_is_no_identity(tmp_path: Path, label: float) -> None:
    with write_records(tmp_path / "a.rec") as records:
        records.add((label,), b"image")
    with pytest.raises(UnreadableImage, match="record 0 at offset 0: its label"):
        _ = RecordFile(tmp_path / "a.rec").record(0).identity


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("0\t0\n1 40\n", ":2: expected `key TAB offset`"),
        ("0\t0\n1\tx\n", ":2: expected"),
        ("0\t0\n1\t-8\n", ":2: expected"),
        ("0\t0\t1\n2\n", ":1: expected"),
        ("0\n1\t40\t2\n", ":1: expected"),
        ("0\t0\n\n1\t8\n", ":2: expected"),
        ("0\t0\n0\t40\n", "record 0 twice"),
    ],
)
def test_a_wrong_index_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path)
    index_path(path).write_text(text)
    with pytest.raises(UserError, match=message):
        RecordFile(path)


def test_an_index_in_another_order_or_without_the_last_line_end(tmp_path: Path) -> None:
    path = written(tmp_path)
    lines = index_path(path).read_text().splitlines()
    index_path(path).write_text("\r\n".join(reversed(lines)))
    assert RecordFile(path).read("2") == by_hand()[2][1]


def test_an_index_of_some_records(tmp_path: Path) -> None:
    path = written(tmp_path)
    lines = index_path(path).read_text().splitlines(keepends=True)
    index_path(path).write_text(lines[1] + lines[3])
    records = RecordFile(path)
    assert [key for key, _ in records.records(Skipped())] == [1, 3]
    assert records.read("1") == b"plain"


def test_a_large_index_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dataset.containers.rec_format._BLOCK", 1000)
    rows = [(key, key * 36) for key in range(500)]
    (tmp_path / "a.idx").write_text("".join(f"{key}\t{offset}\n" for key, offset in rows))
    keys, offsets = read_index(tmp_path / "a.idx")
    assert list(zip(keys.tolist(), offsets.tolist(), strict=True)) == rows


def test_no_record_at_all(tmp_path: Path) -> None:
    (tmp_path / "a.rec").write_bytes(b"something else entirely" * 10)
    with pytest.raises(UserError, match="holds no record"):
        RecordFile(tmp_path / "a.rec")


def test_a_failed_writer_leaves_what_stood_there(tmp_path: Path) -> None:
    path = written(tmp_path)
    before = path.read_bytes(), index_path(path).read_bytes()
    with pytest.raises(RuntimeError), write_records(path) as records:
        records.add((1.0,), b"image")
        raise RuntimeError
    assert (path.read_bytes(), index_path(path).read_bytes()) == before
    assert sorted(os.listdir(tmp_path)) == ["train.idx", "train.rec"]


def test_mxnet_is_not_needed(tmp_path: Path) -> None:
    RecordFile(written(tmp_path))
    assert "mxnet" not in sys.modules
