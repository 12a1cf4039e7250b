"""InsightFace data sets, `train.rec` with `train.idx`, read without mxnet.

The .idx names the records: `key TAB offset`. In InsightFace's files record 0 has no image but two
labels: images have the keys 1 to label[0] - 1. The keys from there to label[1] - 1 hold, for each
identity, the first key of its images and the key after the last. Those numbers are float32, so they
are rounded above 2**24: identities are taken from the images' own labels.
"""

from __future__ import annotations

import io
import os
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import repeat
from pathlib import Path
from typing import IO

import numpy as np

from common.cli import is_count, note
from dataset.containers.base import Container
from dataset.containers.rec_format import (
    HEADER,
    IMAGE_AT,
    MARK,
    MAX_IDENTITIES,
    MAX_PART,
    WORDS,
    Damaged,
    Keys,
    Record,
    content_at,
    index_path,
    parse,
    plain_images,
    read_index,
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
        # As memoryviews, because numpy takes longer for one number.
        self._keys, self._bounds = memoryview(self.keys.data), memoryview(bounds.data)

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
        if not all(map(is_count, members)):
            return nothing
        keys = list(map(int, members))
        rows = np.searchsorted(self.keys[:-1], keys).tolist()
        first, last = min(rows), max(rows)
        begin, size = self._bounds[first], self._bounds[last + 1] - self._bounds[first]
        if last - first >= 2 * len(rows) or not 0 < size <= _RUN:
            return nothing  # the block would hold much that nobody wants
        if [self._keys[row] for row in rows] != keys:
            return nothing
        try:
            block = self.file.read(begin, size)
        except UnreadableImage:
            return nothing
        bounds = self._bounds
        return plain_images(block, ((bounds[row] - begin, bounds[row + 1] - begin) for row in rows))

    def record(self, key: int) -> Record:
        """The record of a key.

        Raises:
            UnreadableImage: no such record, or damaged.
        """
        return self._at(self._row(key), self.file.read)

    def records(self, skipped: Skipped) -> Iterator[tuple[int, Record | Damaged]]:
        """Keys and records in order, without those that describe others, read in large blocks.

        What the scan for a missing index found damaged goes to `skipped`; the index does not name
        it.
        """
        if self.damage:
            skipped.problem("damaged places", f"{self.path}: {self.damage}")
        stream = self.file.stream()

        def read(offset: int, size: int) -> bytes:
            stream.seek(offset)
            return stream.read(size)

        for row in range(len(self)):
            try:
                record = self._at(row, read)
            except Damaged as damage:
                yield self._keys[row], damage
            else:
                if record.image:
                    yield record.key, record

    def images(self, skipped: Skipped) -> Iterator[str]:
        """The keys of all images, damaged ones included."""
        return (str(key) for key, _ in self.records(skipped))

    def identified(self, skipped: Skipped) -> Iterator[tuple[str, str]]:
        """The images with their identities, which are their labels."""
        images = 0
        for key, record in self.records(skipped):
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
        row = bisect_left(self._keys, key)
        if row == len(self) or self._keys[row] != key:
            fix = "; it is a rebuilt one: get the lost one, or make the list again"
            rebuilt = self._keys[0] >= _FIRST_PLACE > key
            raise UnreadableImage(f"the index has no record {key}{fix if rebuilt else ''}")
        return row

    def _at(self, row: int, read: Callable[[int, int], bytes]) -> Record:
        key, offset, following = self._keys[row], self._bounds[row], self._bounds[row + 1]
        stream: IO[bytes]
        if 0 < following - offset <= MAX_PART:
            stream = io.BytesIO(read(offset, following - offset))
        else:  # the index is in another order than the file, or names a few records only
            stream = self.file.stream()
            stream.seek(offset)
        try:
            return parse(key, offset, content_at(stream, offset, self.file.size)[0])
        except Damaged as damage:
            raise Damaged(f"record {key} at offset {offset}: {damage}") from damage

    def _rebuild_index(self, index: Path) -> tuple[Keys, Keys]:
        offsets, ids, images = array("q"), array("q"), array("b")
        name = Path(self.path).name
        from tqdm import tqdm  # here, because every use of rec.py would pay .05 s for it

        with tqdm(
            total=self.file.size,
            desc=f"find the records of {name}",
            unit="B",
            unit_scale=True,
            delay=1,
        ) as bar:
            stream, place = self.file.stream(), 0
            try:
                while place < self.file.size:
                    stream.seek(place)
                    content, end = content_at(stream, place, self.file.size)
                    found = parse(None, place, content)
                    offsets.append(place)
                    ids.append(min(found.key, _MOST_KEY + 1))
                    images.append(bool(found.image))
                    bar.update(end - place)
                    place = end
            except Damaged as damage:
                self._end = place
                self.damage = f"offset {place}: {damage}; what follows needs {index}"
        if not offsets:
            raise UserError(f"{self.path}: holds no record; is it an InsightFace .rec file?")
        # Records without an image may all have the id 0. Of equal ids, the image's is kept.
        places, is_image = np.array(offsets), np.array(images, bool)
        images_first = np.argsort(~is_image, kind="stable")
        keys, kept = np.unique(np.array(ids)[images_first], return_index=True)
        kept = images_first[kept]
        unique = keys[-1] <= _MOST_KEY and is_image[kept].sum() == is_image.sum()
        if unique:
            places = places[kept]
        else:
            keys = _FIRST_PLACE + np.arange(len(places))
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
        """Refuses a .idx of another file, and notes one that does not seem to fit.

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
            doubt = f"it names {count_of(beyond, 'record')} beyond the end of the file"
        elif wrong:
            doubt = f"no record begins at {wrong[0]}"
        else:
            doubt = _other_id(self.keys[some].tolist(), heads) or self._image_after_the_last()
        if doubt:
            note(
                f"{index}: seems to be older than {self.path}, or of another file: {doubt}; if it "
                "is, get both again, or delete it to have it rebuilt"
            )

    def _image_after_the_last(self) -> str:
        """Says where an image begins after the last record that the index names."""
        stream, place = self.file.stream(), int(self.offsets.max())
        stream.seek(place)
        with suppress(Damaged):
            _, end = content_at(stream, place, self.file.size)
            stream.seek(end)
            if parse(None, end, content_at(stream, end, self.file.size)[0]).image:
                return f"another record begins at {end}"
        return ""


def _other_id(keys: list[int], heads: list[bytes]) -> str:
    """Says which key is not its record's own id, if most are not and the ids are all different."""
    ids = [
        (key, own)
        for key, head in zip(keys, heads, strict=True)
        if len(head) == IMAGE_AT and (own := HEADER.unpack_from(head, WORDS.size)[2])
    ]  # without 0, which records that describe others may have
    others = [f"record {key} has the id {own}" for key, own in ids if key != own]
    unique = len({own for _, own in ids}) == len(ids)
    return others[0] if unique and len(others) * 2 > len(ids) and keys[0] < _FIRST_PLACE else ""


def _key_of(member: str) -> int:
    if not is_count(member):
        raise UnreadableImage(f"{member!r} is no record key, a whole number")
    return int(member)
