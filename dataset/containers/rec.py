"""InsightFace data sets, `train.rec` with `train.idx`, read without mxnet.

The .idx names the records: `key TAB offset`. In InsightFace's files record 0 has no image but two
labels: images have the keys 1 to label[0] - 1. The keys from there to label[1] - 1 hold, for each
identity, the first key of its images and the key after the last. Those numbers are float32, so they
are rounded above 2**24: identities are taken from the images' own labels.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import repeat
from pathlib import Path

import numpy as np

from common.cli import is_count, note
from dataset.containers.base import Container
from dataset.containers.rec_format import (
    HEADER,
    IMAGE_AT,
    MARK,
    MAX_IDENTITIES,
    WORDS,
    Damaged,
    Keys,
    Record,
    Window,
    check_end,
    content_at,
    index_path,
    parse,
    plain_images,
    read_index,
    scan,
    write_index,
)
from dataset.left_out import Skipped
from sdd_fiqa.errors import UnreadableImage, UserError
from sdd_fiqa.images import Content
from sdd_fiqa.number import count_of

_LOOKED_AT = 16  # records, to see that an index belongs to its file
_MOST_KEY = 10**18 - 1  # that a list can name
_FIRST_PLACE = 10**12  # rebuilt keys that are places begin here, beyond those of any lost index
_RUN = 1 << 20  # bytes read in one go: stays in a core's cache while they are decoded


class RecordFile(Container):
    """A .rec file, read at random or in its order, by any number of threads.

    Attributes:
        keys: (N,) int64, ascending.
        offsets: (N,) int64, where each record begins.
        damage: where the file is damaged, as far as a scan for a missing index tells; or empty.
    """

    single_identities = True

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Opens it with its .idx; where that is missing, it is rebuilt by one scan.

        Keys are then the ids in the records; where two are equal, the keys are the places in the
        file from 10**12 on, which no list that was made before names. The rebuilt one is kept if
        the scan found no damage.

        Raises:
            UserError: the .idx is not one, or of another file, or there is no record in the file.
            UnreadableImage: the file cannot be read.
        """
        super().__init__(path)
        self.damage = ""
        self._end = self.file.size  # of what is readable
        index = index_path(path)
        if index.exists():
            self.keys, self.offsets = read_index(index)
            self._check_index(index)
        else:
            self.keys, self.offsets = self._rebuild_index(index)
        bounds = np.append(self.offsets, self._end)
        self.offsets = bounds[:-1]
        self._bounds = memoryview(bounds.data)  # numpy takes longer for one number
        count = len(self.keys)
        whole = int(self.keys[-1]) - int(self.keys[0]) == count - 1
        self._first_key = int(self.keys[0]) if whole else None

    def __len__(self) -> int:
        """The number of records, those that hold no image included."""
        return len(self.keys)

    def read(self, member: str) -> bytes:
        """The image of the record named `member`, a key as text.

        Raises:
            UnreadableImage: no such record, damaged, or without an image.
        """
        record = self.record(_key_of(member))
        if not record.image:
            raise UnreadableImage(f"record {record.key} at offset {record.offset} holds no image")
        return record.image

    def read_run(self, members: Sequence[str]) -> Iterable[Content | None]:
        """One read for images that are close together in the file.

        None for an image that is not in an ordinary record: `read` gives it, or its damage.
        """
        nothing = repeat(None, len(members))
        joined = "".join(members)
        if not (joined.isascii() and joined.isdigit()) or len(joined) > 18 * len(members):
            return nothing
        shift = self._first_key
        try:
            if shift is None:
                rows = [self._row(int(member)) for member in members]
            else:
                rows = [int(member) - shift for member in members]
        except ValueError:  # an empty name, or a key that is not there
            return nothing
        first, last = rows[0], rows[-1]
        if not 0 <= first <= last < min(len(self.keys), first + 2 * len(rows)):
            return nothing
        begin, end = self._bounds[first], self._bounds[last + 1]
        if min(rows) < first or max(rows) > last or not 0 < end - begin <= _RUN:
            return nothing  # the block would miss some; and a row below 0 counts from the end
        try:
            block = self.file.read(begin, end - begin)
        except UnreadableImage:
            return nothing
        return plain_images(block, self._bounds, rows)

    def record(self, key: int) -> Record:
        """The record of a key.

        Raises:
            UnreadableImage: no such record, or damaged.
        """
        return self._at(self._row(key), self.file.read)

    def records(self) -> Iterator[tuple[int, Record | Damaged]]:
        """Keys and records in order, without those that describe others, read in large blocks."""
        window = Window(self.file)
        for row in range(len(self)):
            try:
                record = self._at(row, window.read)
            except Damaged as damage:
                yield int(self.keys[row]), damage
            else:
                if record.image:
                    yield record.key, record

    def _report_damage(self, skipped: Skipped) -> None:
        """What the scan for a missing index found damaged; the index does not name it."""
        if self.damage:
            skipped.problem("damaged places", f"{self.path}: {self.damage}")

    def images(self, skipped: Skipped) -> Iterator[str]:
        """The keys of all images, damaged ones included."""
        self._report_damage(skipped)
        return (str(key) for key, _ in self.records())

    def identified(self, skipped: Skipped) -> Iterator[tuple[str, str]]:
        """The images with their identities, which are their labels."""
        self._report_damage(skipped)
        images = 0
        for key, record in self.records():
            images += 1
            if isinstance(record, Damaged):
                skipped.problem("damaged records", f"{self.path}: {record}")
                continue
            try:
                yield str(key), str(record.identity)
            except UnreadableImage as error:
                skipped.problem("records without an identity", f"{self.path}: {error}")
        with suppress(UnreadableImage):
            first = self._at(0, self.file.read)
            announced = int(first.labels[0]) - 1
            described = not first.image and len(first.labels) > 1
            if described and announced < MAX_IDENTITIES and announced != images:
                skipped.problem(
                    "files whose first record announces another number of images",
                    f"{self.path}: {announced} announced, {images} found",
                )

    def identity(self, member: str) -> str:
        """The identity of one image, its label."""
        return str(self.record(_key_of(member)).identity)

    def _row(self, key: int) -> int:
        if self._first_key is not None:
            row = key - self._first_key
            known = 0 <= row < len(self.keys)
        else:
            row = int(np.searchsorted(self.keys, key))
            known = row < len(self.keys) and self.keys[row] == key
        if not known:
            fix = "; it is a rebuilt one: get the lost one, or make the list again"
            rebuilt = self.keys[0] >= _FIRST_PLACE > key
            raise UnreadableImage(f"the index has no record {key}{fix if rebuilt else ''}")
        return row

    def _at(self, row: int, read: Callable[[int, int], bytes]) -> Record:
        key, offset, following = int(self.keys[row]), self._bounds[row], self._bounds[row + 1]
        try:
            content, end = content_at(read, offset, following, self.file.size)
            if offset < following < end:
                raise Damaged("its length reaches into the next record")
            if end != following:
                check_end(read, end, self.file.size)
            return parse(key, offset, content)
        except Damaged as damage:
            raise Damaged(f"record {key} at offset {offset}: {damage}") from damage

    def _rebuild_index(self, index: Path) -> tuple[Keys, Keys]:
        offsets, ids, shows = array("q"), array("q"), bytearray()
        name = Path(self.path).name
        from tqdm import tqdm  # here, because every use of rec.py would pay .05 s for it

        with tqdm(
            total=self.file.size,
            desc=f"find the records of {name}",
            unit="B",
            unit_scale=True,
            delay=1,
        ) as bar:
            for found in scan(self.file):
                if not isinstance(found, Record):
                    self._end, what = found
                    self.damage = f"offset {self._end}: {what}; what follows needs {index}"
                    break
                offsets.append(found.offset)
                ids.append(min(found.key, _MOST_KEY + 1))
                shows.append(bool(found.image))
                if found.offset - bar.n > 1 << 20:
                    bar.update(found.offset - bar.n)
        if not offsets:
            raise UserError(f"{self.path}: holds no record; is it an InsightFace .rec file?")
        # Records without an image may all have the id 0. Of equal ids, the image's is kept.
        places, keys = np.array(offsets, np.int64), np.array(ids, np.int64)
        is_image = np.array(shows, bool)
        order = np.lexsort((~is_image, keys))
        repeated = np.append(False, keys[order][1:] == keys[order][:-1])
        unique = keys.max() <= _MOST_KEY and not np.any(repeated & is_image[order])
        if unique:
            keys, places = keys[order][~repeated], places[order][~repeated]
        else:
            keys = _FIRST_PLACE + np.arange(len(places), dtype=np.int64)
        done = f"{index}: was missing; {count_of(len(keys), 'record')} found by one scan"
        if not unique:
            done += ", whose ids are not unique: lists made before do not fit; make them again"
        if self.damage:  # an index names records only: no later run would tell of the damage
            done += f"; not kept, as the file is damaged at {self.damage}"
        else:
            try:
                write_index(index, keys, places)
            except UserError:
                done += " (the folder cannot be written: every process will scan)"
        note(done)
        return keys, places

    def _check_index(self, index: Path) -> None:
        """Refuses a .idx of another file, and notes one that seems to be an older one.

        One damaged record is no reason to refuse it.
        """
        some = np.unique(np.linspace(0, len(self.offsets) - 1, _LOOKED_AT).astype(np.int64))
        offsets = self.offsets[some].tolist()
        heads = [self.file.read(offset, IMAGE_AT) for offset in offsets]
        wrong = [at for at, head in zip(offsets, heads, strict=True) if not head.startswith(MARK)]
        if len(wrong) * 2 > len(offsets):
            raise UserError(
                f"{index}: belongs to another file than {self.path}: it says that records begin at "
                f"{', '.join(map(str, wrong[:3]))}, where none does; get both again, or delete it "
                "to have it rebuilt"
            )
        if beyond := int(np.count_nonzero(self.offsets >= self._end)):
            note(
                f"{index}: names {count_of(beyond, 'record')} beyond the end of {self.path}, which "
                "is cut short, or has another index; get both again"
            )
        if not wrong:
            self._check_ids(index, self.keys[some].tolist(), heads)
        places = [offset for offset in wrong if offset < self._end]
        last = int(self.offsets.max())
        if not wrong:
            read, size = self.file.read, self._end
            with suppress(Damaged):
                end = content_at(read, last, last + 1, size)[1]
                following = parse(-1, end, content_at(read, end, end + 1, size)[0])
                places = [end] if following.image else []
        if places:
            what = "no record begins" if wrong else "another record begins"
            note(
                f"{index}: seems to be older than {self.path}, where {what} at {places[0]}; if it "
                "is, delete it to have it rebuilt"
            )

    def _check_ids(self, index: Path, keys: list[int], heads: list[bytes]) -> None:
        """Notes keys that are not the own ids of some records, if these are all different."""
        ids = [
            (key, own)
            for key, head in zip(keys, heads, strict=True)
            if len(head) == IMAGE_AT and (own := HEADER.unpack_from(head, WORDS.size)[2])
        ]  # without 0, which records that describe others may have
        others = [(key, own) for key, own in ids if key != own]
        unique = len({own for _, own in ids}) == len(ids)
        if unique and len(others) * 2 > len(ids) and keys[0] < _FIRST_PLACE:
            key, own = others[0]
            note(
                f"{index}: seems to be of another file than {self.path}: record {key} has the id "
                f"{own}, and so on; if it is, delete it to have it rebuilt"
            )


def _key_of(member: str) -> int:
    if not is_count(member):
        raise UnreadableImage(f"{member!r} is no record key, a whole number")
    return int(member)
