"""What the README and the pages name exists: scripts, modules, folders, Python names, links."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

from sdd_fiqa.assets import ASSETS

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
_LEFT_BEHIND = {"build", "dist"}  # by tools; so are hidden folders
ROOMS = [
    path
    for path in ROOT.iterdir()
    if path.is_dir() and path.name[0] != "." and path.name not in _LEFT_BEHIND
]
OURS = {path.name for path in ROOMS} | {path.stem for path in ROOT.glob("*.py")}

_SCRIPT = re.compile(r"(?<![\w./<-])([\w][\w./-]*\.(?:py|sh))\b")
_MODULE = re.compile(r"python -m ([\w.]+)")
_IMPORT = re.compile(r"^\s*from ([\w.]+) import (\w+)", re.MULTILINE)
_FOLDER = re.compile(r"`([\w][\w./-]*/)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def named(pattern: re.Pattern[str]) -> Iterator[tuple[str, str]]:
    """Each page with each text that the pattern finds in it, once."""
    for page in PAGES:
        for text in dict.fromkeys(pattern.findall(page.read_text(encoding="utf-8"))):
            yield page.name, text


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken_link(page: Path, target: str) -> bool:
    """Whether a relative link of a page leads nowhere."""
    if re.match(r"[a-z]+:", target):
        return False  # another site
    path, _, anchor = unquote(target).partition("#")
    file = (page.parent / path).resolve() if path else page
    return not file.exists() or (bool(anchor) and anchor not in headings(file))


def test_every_script_they_name_exists() -> None:
    names = {path.name for room in ROOMS for path in room.rglob("*.py")}
    names |= {path.name for pattern in ("*.py", "*.sh") for path in ROOT.glob(pattern)}
    found = list(named(_SCRIPT))
    assert len(found) > 50
    # A name without a folder may be in any of them.
    missing = [
        (page, script)
        for page, script in found
        if not ((ROOT / script).is_file() if "/" in script else script in names)
    ]
    assert not missing


def test_every_module_and_folder_they_name_exists() -> None:
    modules = [(page, name) for page, name in named(_MODULE) if name.split(".")[0] in OURS]
    assert len(modules) > 5
    assert not [(page, name) for page, name in modules if importlib.util.find_spec(name) is None]
    folders = [(page, name) for page, name in named(_FOLDER) if name.split("/")[0] in OURS]
    assert len(folders) > 5
    assert not [(page, name) for page, name in folders if not (ROOT / name).is_dir()]


def test_every_name_they_import_exists() -> None:
    imports = [
        (page, module, name)
        for page in PAGES
        for module, name in _IMPORT.findall(page.read_text(encoding="utf-8"))
        if module.split(".")[0] in OURS
    ]
    assert imports
    for page, module, name in imports:
        assert hasattr(importlib.import_module(module), name), (page, module, name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    targets = _LINK.findall(page.read_text(encoding="utf-8"))
    assert not [target for target in targets if broken_link(page, target)]


def test_a_broken_link_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A title: with `code`, and more\n")
    assert not broken_link(page, "#a-title-with-code-and-more")
    assert not broken_link(page, "https://example.org/none")
    assert broken_link(page, "#another-title")
    assert broken_link(page, "other.md")


def test_every_page_is_in_the_index() -> None:
    linked = {
        target.partition("#")[0] for target in _LINK.findall((ROOT / "README.md").read_text())
    }
    pages = {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")}
    assert pages <= linked


def test_every_fetched_file_is_in_the_table_with_its_hash_and_licence() -> None:
    page = (ROOT / "docs/reliability.md").read_text()
    shown = {line.split(" | ")[0].strip("| `"): line for line in page.splitlines() if "| `" in line}
    for name, asset in ASSETS.items():
        for value in (asset.file_name, asset.wheel, asset.sha256, asset.licence):
            assert value in shown[name]
