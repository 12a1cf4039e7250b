"""Reads damaged copies of a file of one format; each must be read, or refused in one line.

    python tests/support/mutated_files.py tar --count 200 --seed 0 --seconds 5 --gib 4

Damage is seeded. The exit code is 1 after an exception that is no refusal, or if a file outside the
working folder has changed. An input that takes too long or too much address space ends the process.
"""

from __future__ import annotations

import argparse
import faulthandler
import io
import json
import os
import pickle
import resource
import signal
import sys
import tarfile
import tempfile
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from sdd_fiqa.errors import UnreadableImage, UserError

Reader = Callable[[], object]
FACE = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
NUMBERS = [b"1e999", b"-1", b"NaN", b"1" + b"0" * 30, b"", b"true", b"[]", b"-1e999", b"\xff"]


def image(suffix: str) -> tuple[str, bytes, Callable[[Path], object]]:
    from sdd_fiqa.images import decode_image

    content = io.BytesIO()
    if suffix in ("gif", "avif"):
        from PIL import Image

        Image.fromarray(FACE).save(content, suffix)
    else:
        content.write(cv2.imencode(f".{suffix}", FACE)[1].tobytes())
    return f"a.{suffix}", content.getvalue(), lambda path: decode_image(path.read_bytes())


def image_list() -> tuple[str, bytes, Callable[[Path], object]]:
    from dataset.lists import read_labelpath, read_table

    def read(path: Path) -> object:
        for reader in (read_table, read_labelpath, lambda file: read_table(file, "label")):
            try:
                table = reader(path)
            except UserError:
                continue
            list((table[0] if isinstance(table, tuple) else table).paths())
        return None

    text = "".join(f"faces/id{n // 3}/{n}.jpg\t{n // 3}\n" for n in range(30))
    return "DATA.labelpath", text.encode(), read


def scores() -> tuple[str, bytes, Callable[[Path], object]]:
    from dataset.lists import read_table
    from dataset.score_files import read_scores

    text = "".join(f"faces/{n}.jpg,{n}.5,ok\n" for n in range(30))
    (Path.cwd() / "list").write_text("".join(f"faces/{n}.jpg\n" for n in range(30)))
    table = read_table(Path("list"))
    return (
        "scores.csv",
        f"path,score,status\n{text}".encode(),
        lambda path: read_scores(path, table),
    )


def npy() -> tuple[str, bytes, Callable[[Path], object]]:
    from dataset.embeddings import EmbeddingsFile

    content = io.BytesIO()
    np.save(content, np.ones((30, 8), np.float16))
    return "f.npy", content.getvalue(), lambda path: EmbeddingsFile(path).usable_rows()


def beside() -> tuple[str, bytes, Callable[[Path], object]]:
    from dataset.embeddings import open_embeddings
    from dataset.lists import read_table

    Path("list").write_text("a.jpg\nb.jpg\n")
    np.save("f.npy", np.ones((2, 8), np.float16))
    table = read_table(Path("list"))
    described = {
        "list": {"sha256": table.sha256, "rows": 2},
        "dimension": 8,
        "rows_done": 2,
        "unreadable": [{"row": 1, "path": "b.jpg", "reason": "is empty"}],
    }
    text = json.dumps(described).encode()
    return "f.json", text, lambda path: open_embeddings(Path("f.npy"), table)


def journal(which: str) -> tuple[str, bytes, Callable[[Path], object]]:
    from dataset.embedding_writer import FeatureWriter
    from dataset.lists import read_table

    Path("list").write_text("".join(f"{n}.jpg\n" for n in range(12)))
    table = read_table(Path("list"))
    writer = FeatureWriter(Path("feats"), 12, 4, {"list": {"sha256": table.sha256}})

    def begin() -> None:
        writer._clear()
        writer.prepare()
        for start in (0, 4):
            writer.write(start, np.ones((4, 4), np.float32), {1: "is empty"} if start else {})

    begin()
    name = f"feats/Embedding_{which}"
    content = Path(name).read_bytes()

    def read(path: Path) -> object:
        damaged = path.read_bytes()
        begin()
        path.write_bytes(damaged)
        writer.prepare()
        for number in writer.missing_batches(4).tolist():
            writer.write(4 * number, np.ones((4, 4), np.float32), {})
        writer.finish(table)
        assert writer.finished() is not None
        return None

    return name, content, read


def container(kind: str) -> tuple[str, bytes, Callable[[Path], object]]:
    from dataset.containers import close_container, open_container
    from dataset.containers.pack import write_records
    from dataset.left_out import Skipped

    images = [cv2.imencode(".png", FACE + n)[1].tobytes() for n in range(6)]
    name = f"a.{kind}"
    if kind in ("rec", "idx"):
        with write_records("a.rec") as records:
            for number, content in enumerate(images):
                records.add((float(number // 2),), content)
    elif kind == "tar":
        with tarfile.open(name, "w", format=tarfile.PAX_FORMAT) as tar:
            for number, content in enumerate(images):
                entry = tarfile.TarInfo(f"{'d' * 60}/{'é' * (number * 20)}{number}.png")
                entry.size, entry.mtime = len(content), 1.5
                tar.addfile(entry, io.BytesIO(content))
    else:
        Path(name).write_bytes(pickle.dumps((images, [True, False, True])))
    whole = Path(name).read_bytes()

    def read(path: Path) -> object:
        target = "a.rec" if kind == "idx" else name
        if kind == "rec":
            Path("a.idx").unlink(missing_ok=True)
        close_container(target)
        opened = open_container(target)
        for member in [*opened.images(Skipped()), "1", "x"]:
            try:
                opened.read(member)
            except UnreadableImage:
                continue
        return list(opened.identified(Skipped())) if kind != "tar" else None

    return name, whole, read


def checkpoint(kind: str) -> tuple[str, bytes, Callable[[Path], object]]:
    import torch

    from models.checkpoints import read_resume, save_resume
    from models.state_dicts import read_state

    if kind == "pth":
        torch.save({"w": torch.ones(9), "b": torch.zeros(3)}, "a.pth")
        return "a.pth", Path("a.pth").read_bytes(), read_state
    save_resume(Path(), {"seed": 0}, {"network": {"w": torch.ones(9)}, "state": {"epoch": 1}})

    def read(path: Path) -> object:
        return read_resume(Path(), {"seed": 0})

    return "last.ckpt", Path("last.ckpt").read_bytes(), read


def onnx() -> tuple[str, bytes, Callable[[Path], object]]:
    import onnx as library
    from onnx import TensorProto, helper

    from sdd_fiqa.quality_onnx import load_onnx_model

    takes = helper.make_tensor_value_info("faces", TensorProto.UINT8, ["N", 112, 112, 3])
    gives = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N"])
    axes = helper.make_tensor("axes", TensorProto.INT64, [3], [1, 2, 3])
    nodes = [
        helper.make_node("Cast", ["faces"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["x", "axes"], ["scores"], keepdims=0),
    ]
    graph = helper.make_graph(nodes, "g", [takes], [gives], [axes])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    library.checker.check_model(model)
    return "a.onnx", model.SerializeToString(), lambda path: load_onnx_model(path, "cpu")


FORMATS: dict[str, Callable[[], tuple[str, bytes, Callable[[Path], object]]]] = {
    "list": image_list,
    "scores.csv": scores,
    "npy": npy,
    "json": beside,
    "journal": partial(journal, "Features.npy.0.journal"),
    "part": partial(journal, "Norms.npy.part"),
    **{kind: partial(container, kind) for kind in ("rec", "idx", "bin", "tar")},
    **{kind: partial(checkpoint, kind) for kind in ("pth", "ckpt")},
    "onnx": onnx,
    **{
        kind: partial(image, kind)
        for kind in ("jpg", "png", "webp", "bmp", "ppm", "tiff", "gif", "avif", "jp2")
    },
}


def mutated(content: bytes, random: np.random.Generator) -> bytes:
    """A damaged copy: bits, bytes, blocks, numbers; half of the damage is near the beginning."""
    out = bytearray(content)
    for _ in range(random.integers(1, 4)):
        end = min(len(out), 600) if random.random() < 0.5 else len(out)
        at = int(random.integers(0, max(end, 1)))
        size = int(random.integers(1, 64))
        kind = int(random.integers(12))
        if kind == 0 and out:
            out[at % len(out)] ^= 1 << int(random.integers(8))
        elif kind == 1:
            out[at : at + 4] = bytes(len(out[at : at + 4]))
        elif kind == 2:
            out[at : at + 8] = b"\xff" * len(out[at : at + 8])
        elif kind == 3:
            del out[at:]
        elif kind == 4:
            del out[at : at + size]
        elif kind == 5:
            out[at:at] = out[at : at + size]
        elif kind == 6:
            out[at : at + size] = random.bytes(len(out[at : at + size]))
        else:  # another number in place of a run of digits
            while at < len(out) and not chr(out[at]).isdigit():
                at += 1
            stop = at
            while stop < len(out) and chr(out[stop]).isdigit():
                stop += 1
            out[at:stop] = NUMBERS[int(random.integers(len(NUMBERS)))]
    return bytes(out)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("format", choices=FORMATS)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=5, help="of CPU; 20 times that of waiting")
    parser.add_argument("--gib", type=float, default=4, help="beyond what the libraries take")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as outer:
        canary = Path(outer) / "canary"
        canary.write_bytes(b"untouched")
        work = Path(outer) / "work"
        work.mkdir()
        os.chdir(work)
        name, content, read = FORMATS[chosen.format]()
        read_whole(Path(name), content, read)
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limit = taken + int(chosen.gib * 2**30)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        faulthandler.register(signal.SIGPROF, chain=True)  # then it ends the process
        refused = failed = 0
        for number in range(chosen.count):
            damaged = mutated(content, np.random.default_rng([chosen.seed, number]))
            Path(name).write_bytes(damaged)
            signal.setitimer(signal.ITIMER_PROF, chosen.seconds)
            faulthandler.dump_traceback_later(20 * chosen.seconds, exit=True)
            try:
                read(Path(name))
            except (UserError, UnreadableImage) as error:
                refused += 1
                if not str(error):
                    failed += 1
            except Exception:
                failed += 1
                print(f"{chosen.format}: seed {chosen.seed}, number {number}", file=sys.stderr)
                traceback.print_exc()
            faulthandler.cancel_dump_traceback_later()
        os.chdir(outer)
        if canary.read_bytes() != b"untouched" or len(os.listdir(outer)) != 2:
            failed += 1
            print(f"{chosen.format}: wrote outside its folder", file=sys.stderr)
    print(f"{chosen.format}: {chosen.count} inputs, {refused} refused, {failed} failed")
    return int(failed > 0)


def read_whole(path: Path, content: bytes, read: Callable[[Path], object]) -> None:
    """The file itself is read: else every damage would be refused for another reason."""
    path.write_bytes(content)
    read(path)


if __name__ == "__main__":
    sys.exit(main())
