"""What a search for images did not take, and why."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from dataset.video import begins_as_video, first_bytes
from sdd_fiqa.images import format_of

VIDEO = "is a video: add --frames-per-second 2"
UNKNOWN_PICTURE = "is a picture of a kind that is not read: save it as JPEG or PNG"
_BAD_NAME = "its name holds a TAB, a line break or no UTF-8: rename it"
NO_SUFFIX = "is an image, but its name does not say so: name the file itself, or rename it"
_KINDS = {  # in the plural, for a count
    VIDEO: "videos (eval.py scores them with --frames-per-second 2)",
    UNKNOWN_PICTURE: "pictures of a kind that is not read (save them as JPEG or PNG)",
    NO_SUFFIX: "images whose names do not say so (rename them)",
    _BAD_NAME: "names with a TAB, a line break or no UTF-8 (rename them)",
}
_UNFIT = re.compile("[\t\n\r\ud800-\udfff]")
_SHOWN = 5  # names given of each problem

# How files begin that no decoder here reads. Photoshop, JPEG XL, OpenEXR, Radiance, GIMP, QOI,
# icons, JPEG XR, PAM and PFM, raw files; Canon's raw shares a container with MP4 videos.
_PICTURE_START = re.compile(
    rb"8BPS|\xff\x0a|\0\0\0\x0cJXL |v/1\x01|#\?RADIANCE|gimp xcf|qoif|\0\0\x01\0[^\0]|II\xbc\x01"
    rb"|P[7Ff]\n|FUJIFILMCCD|FOVb|IIR[OS]|IIU\0|\0.{3}ftypcrx ",
    re.DOTALL,
)
_PICTURE_SUFFIX = re.compile(
    r"\.(?:jxl|psd|exr|hdr|jpx|j2k|jxr|xcf|tga|ico|pcx|dds|sgi|svg|eps"
    r"|dng|cr2|cr3|crw|nef|nrw|arw|orf|rw2|raf|pef|srw|sr2|rwl|3fr|iiq|kdc|mrw|x3f|gpr)"
)


@dataclass
class Skipped:
    """What a search did not take, counted by kind.

    Attributes:
        expected: {".txt files": 3, "hidden files": 1, ...}; nothing is wrong with these.
        problems: {"folders that cannot be read": 2, ...}; the user should look at these.
        examples: the first paths of each problem.
        unread: {path: why it is not read} of pictures and videos that the search yields all the
            same, so that each has a row; None: it does not yield them, and they are problems.
        videos: whether videos are wanted: the search yields them as it yields images.
    """

    expected: Counter[str] = field(default_factory=Counter)
    problems: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    unread: dict[str, str] | None = None
    videos: bool = False

    def other_file(self, path: str) -> Iterator[str]:
        """Notes one file that is not taken as an image; yields it where it has a row all the same.

        Pictures and videos are told by their first bytes, or else by their suffix.
        """
        reason = why_unread(path)
        if reason is None:
            suffix = os.path.splitext(path)[1].lower()
            self.expected[f"{suffix} files" if suffix else "files without a suffix"] += 1
        elif self.picture_or_video(path, reason):
            yield from self.fitting(path)

    def picture_or_video(self, path: str, reason: str) -> bool:
        """As `other_file`, where the reason is known; returns whether the path has a row."""
        if reason == VIDEO and self.videos:
            return True
        if self.unread is None:
            self.problem(_KINDS[reason], path)
            return False
        self.unread[path] = reason
        return True

    def fitting(self, path: str) -> Iterator[str]:
        """Yields a path that a list can hold; notes another one, which has a row with its reason.

        That row holds the path with escapes, such as a backslash and `n` for a line break.
        """
        if fits_a_line(path):
            yield path
            return
        shown = _UNFIT.sub(lambda match: match[0].encode("unicode_escape").decode(), path)
        if self.unread is None or os.path.lexists(shown):
            self.problem(_KINDS[_BAD_NAME], path)
        else:
            self.unread[shown] = _BAD_NAME
            yield shown

    def problem(self, kind: str, path: str) -> None:
        """Counts one path that should have been taken."""
        self.problems[kind] += 1
        shown = self.examples.setdefault(kind, [])
        if len(shown) < _SHOWN:
            shown.append(path)

    def lines(self) -> list[str]:
        """A human-readable line for each kind."""
        lines = [f"left out: {kind}: {count}" for kind, count in sorted(self.expected.items())]
        for kind, count in sorted(self.problems.items()):
            more = ", ..." if count > _SHOWN else ""
            shown = ", ".join(map(ascii, self.examples[kind]))
            lines.append(f"left out: {kind}: {count} ({shown}{more})")
        return lines


def why_unread(path: str) -> str | None:
    """Why a picture or a video is left out by a search; None: the file is neither."""
    return why_left_out(first_bytes(path) or b"", path) if os.path.isfile(path) else None


def why_left_out(start: bytes, name: str) -> str | None:
    """As `why_unread`, from the first START bytes and the name."""
    raw = _PICTURE_SUFFIX.fullmatch(os.path.splitext(name)[1].lower())
    if format_of(start) is not None:  # a camera's raw file begins as a TIFF does
        return UNKNOWN_PICTURE if raw else NO_SUFFIX
    if _PICTURE_START.match(start):
        return UNKNOWN_PICTURE
    if begins_as_video(start, name):
        return VIDEO
    return UNKNOWN_PICTURE if raw else None


def fits_a_line(path: str) -> bool:
    """Whether a list can hold a path: no TAB, no line break, and UTF-8."""
    return _UNFIT.search(path) is None
