"""The floors of the house: every import of the tree runs downward, also those inside functions."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROOMS = (
    "sdd_fiqa",
    "common",
    "dataset",
    "models",
    "generate_pseudo_labels",
    "evaluation",
    "train_config.py",  # data: the fields and defaults of a training
    "training",
)
SCRIPTS = len(ROOMS)  # the floor of a file that is run as a script, wherever it lies
LIBRARY = {
    "cv2",
    "numpy",
    "onnxruntime",
    "PIL",
    "pillow_heif",
    "simplejpeg",
    "tqdm",
}  # all that sdd_fiqa uses


def house() -> dict[str, ast.Module]:
    """Every file of the rooms, and every script at the top, by its path."""
    folders = [ROOT.glob("*.py"), *((ROOT / room).rglob("*.py") for room in ROOMS)]
    files = sorted({path for folder in folders for path in folder})
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_bytes()) for path in files}


FILES = house()


def is_script(tree: ast.Module) -> bool:
    return any(
        isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"
        for node in tree.body
    )


def floor(file: str) -> int:
    room = file.split("/", 1)[0]
    if room not in ROOMS or (is_script(FILES[file]) and "/" in file):
        return SCRIPTS
    return ROOMS.index(room)


def modules(file: str) -> Iterator[tuple[str, str]]:
    """Each import of a file: the module, and the name that is taken from it or nothing."""
    for node in ast.walk(FILES[file]):
        if isinstance(node, ast.Import):
            yield from ((name.name, "") for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            yield from ((node.module or "", name.name) for name in node.names)


def imported(file: str) -> set[str]:
    """The files of the house that a file imports."""
    found = set()
    for module, name in modules(file):
        base = module.replace(".", "/")
        ends = (f"/{name}.py", f"/{name}/__init__.py", ".py", "/__init__.py")
        places = [f"{base}{end}" for end in ends]
        found |= set([place for place in places if place in FILES][:1])
    return found


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Files that import each other, directly or through others; sorted groups of two or more."""
    reach = {file: set(targets) for file, targets in graph.items()}
    for middle in graph:  # Warshall
        for targets in reach.values():
            if middle in targets:
                targets |= reach[middle]
    groups = {
        tuple(sorted(other for other in reach[file] if file in reach[other]))
        for file in graph
        if file in reach[file]
    }
    return [list(group) for group in sorted(groups)]


def violations() -> list[str]:
    graph = {file: imported(file) for file in FILES}
    said = []
    for file, targets in graph.items():
        for target in sorted(targets):
            if is_script(FILES[target]):
                said.append(f"{file} imports the script {target}")
            elif floor(target) > floor(file):
                said.append(f"{file} imports {target} above")
    said += [f"{file} imports {module}" for file in FILES for module in foreign(file)]
    return said + ["circle: " + " ".join(group) for group in circles(graph)]


def foreign(file: str) -> list[str]:
    """What a file of sdd_fiqa imports beyond itself, Python and the few packages it needs."""
    if not file.startswith("sdd_fiqa/"):
        return []
    tops = {module.split(".")[0] for module, _ in modules(file)}
    rooms = {name.removesuffix(".py") for name in ROOMS}
    return sorted(tops - LIBRARY - set(sys.stdlib_module_names) - rooms)


def test_imports_run_downward_and_in_no_circle() -> None:
    assert sorted(violations()) == []


def test_the_rules_see_what_breaks_them() -> None:
    assert imported("train.py") >= {"train_config.py", "common/cli.py"}
    assert floor("train.py") == SCRIPTS > floor("train_config.py") > floor("models/quality.py")
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == [["b", "c"]]
