"""How fast is a photo scored (decode, detect, align, score), against the plain way?

    python -m benchmarks.speed_photos                      faces of the ORL set
    python -m benchmarks.speed_photos --photos photos.tar  photos of one face each

Photos are made: faces at known places on a blurred background, as JPEG. The plain way takes one
photo at a time: cv2.imdecode, YuNet at the photo's size, one warp, onnxruntime with one face a
call. Ours is the library: `scorer(photo)` for latency, `scorer.map` for throughput; with most=1
where the photo has one face, as `eval.py --align`. All ways run in turns in one process, bound to
1 or 2 cores; times are medians over the turns, ratios medians of the ratios within a turn.

"close-up" is the share of the latency that the second look at each face takes. "off" is the mean
distance of the landmarks from where they are, in pixels of the aligned 112 x 112 face: the plain
way's, and ours. The true places are the mean of 12 plain looks at each face alone, large, under
small turns.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice

import numpy as np
import onnxruntime

from common.cli import EXIT_DONE, run_script
from dataset.find import find_images
from dataset.images import read_image
from dataset.left_out import Skipped
from sdd_fiqa.alignment import TEMPLATE, FaceAligner, Points, similarity_transform
from sdd_fiqa.assets import fetch
from sdd_fiqa.errors import UserError
from sdd_fiqa.images import Image, cv2, decode_image
from sdd_fiqa.quality_onnx import SHIPPED, load_onnx_model
from sdd_fiqa.scorer import Scorer

SIZES = {"720p": (1280, 720), "4000x3000": (4000, 3000)}
GOALS = {("720p", 1, 2): 1.5, ("4000x3000", 1, 2): 3.0}  # (size, faces, cores): times the plain way
_LOOKS = 12  # for the true places

Source = tuple[Image, Points]  # a photo of one face, and where its landmarks are
Found = list[list[Points]]  # of each photo, the landmarks of each scored face


def main(
    *,
    photos: str | None = None,
    count: int = 4,
    repeats: int = 5,
    sizes: tuple[str, ...] = tuple(SIZES),
    cores: int = 0,
) -> int:
    """Measures latency, throughput and alignment error.

    Args:
        photos: photos that show one face each; without it, the ORL faces.
        count: made photos in each turn.
        repeats: turns.
        sizes: 720p, 4000x3000.
        cores: how many cores this process may use; 0 starts a process with 1 and one with 2.
    """
    if cores == 0:
        for number in (1, 2):
            chosen = sorted(os.sched_getaffinity(0))[:number]
            command = [sys.executable, "-m", "benchmarks.speed_photos", *sys.argv[1:]]
            subprocess.run(
                [*command, f"--cores={number}"],
                check=True,
                preexec_fn=partial(os.sched_setaffinity, 0, chosen),
            )
        return EXIT_DONE
    sources = list(islice(_sources(photos), 20))
    if not sources:
        raise UserError(f"{photos}: no photo in which every look finds one face")
    for size in sizes:
        for faces in (1, 10):
            rng = np.random.default_rng(0)
            made = [_montage(rng, sources, SIZES[size], faces) for _ in range(count)]
            _measure(size, faces, made, cores, repeats)
    return EXIT_DONE


def _measure(
    size: str, faces: int, made: list[tuple[bytes, list[Points]]], cores: int, repeats: int
) -> None:
    """Times all ways in turns, and prints a line."""
    files = [content for content, _ in made]
    most = 1 if faces == 1 else None
    aligner = FaceAligner()
    scorer = Scorer(load_onnx_model(SHIPPED["small"], "cpu", threads=cores), aligner, cores)
    images = [decode_image(content) for content in files]
    seen = [aligner.search(image, most is None)[:most] for image in images]

    def one_at_a_time() -> Found:
        return [[face.landmarks for face in scorer(content, most)] for content in files]

    def close_up() -> None:
        for image, some in zip(images, seen, strict=True):
            for face in some:
                aligner.look_closer(image, face)

    ways: tuple[tuple[int, Callable[[], object]], ...] = (
        (cores, plain := _plain_way(files, cores)),
        (cores, one_at_a_time),
        (cores, close_up),
        (1, lambda: list(scorer.map(files, most))),  # photos are searched side by side
    )
    turns = []
    for _ in range(repeats + 1):
        turn = []
        for threads, way in ways:
            cv2.setNumThreads(threads)
            start = time.perf_counter()
            way()
            turn.append(1000 * (time.perf_counter() - start) / len(files))
        turns.append(turn)
    taken = np.array(turns[1:])  # the first turn loads
    times = np.median(taken, axis=0)
    ratios = np.median(taken[:, :1] / taken, axis=0)
    share = float(np.median(taken[:, 2] / taken[:, 1]))
    places = [where for _, where in made]
    goal = GOALS.get((size, faces, cores))
    print(
        f"{size:9} faces {faces:2} cores {cores}: plain {times[0]:.0f} ms; ours {times[1]:.0f} ms, "
        f"{ratios[1]:.2f} times as fast{'' if goal is None else f' (goal {goal})'}; "
        f"{1000 / times[3]:.2f} photos/s, {ratios[3]:.2f} times; close-up {share:.0%}; "
        f"off: plain {_off(plain(), places)}, ours {_off(one_at_a_time(), places)}",
        flush=True,
    )


def _plain_way(files: list[bytes], cores: int) -> Callable[[], Found]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cores
    model = str(SHIPPED["small"])
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    takes = session.get_inputs()[0].name
    look = _plain_look()

    def run() -> Found:
        found = []
        for content in files:
            data = np.frombuffer(content, np.uint8)
            image = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)
            found.append(look(image))
            for points in found[-1]:
                crop = cv2.warpAffine(image, similarity_transform(points, TEMPLATE), (112, 112))
                session.run(None, {takes: crop[None, :, :, ::-1].copy()})
        return found

    return run


def _plain_look() -> Callable[[Image], list[Points]]:
    """BGR -> the landmarks of each face that YuNet sees at the image's size."""
    detector = cv2.FaceDetectorYN.create(str(fetch("yunet")), "", (112, 112), 0.6, 0.3, 5000)

    def look(image: Image) -> list[Points]:
        detector.setInputSize((image.shape[1], image.shape[0]))
        rows = detector.detect(image)[1]
        return [] if rows is None else [row[4:14].reshape(5, 2).astype(float) for row in rows]

    return look


def _sources(photos: str | None) -> Iterator[Source]:
    """Photos of one face with the true landmarks: the mean of looks at turned copies."""
    rng = np.random.default_rng(0)
    look = _plain_look()
    for path in find_images([photos or str(fetch("orl"))], Skipped()):
        image = read_image(path)
        middle = (np.array(image.shape[1::-1]) - 1) / 2
        looks = []
        for _ in range(_LOOKS):
            matrix = _similarity(rng.uniform(250, 350) / max(image.shape), rng.uniform(-9, 9))
            matrix[:, 2] = (239.5, 239.5) - matrix[:, :2] @ middle
            seen = look(_moved(image, matrix, (480, 480))[:, :, ::-1].copy())
            if len(seen) != 1:
                break
            looks.append((seen[0] - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T)
        else:
            yield image, np.mean(looks, axis=0)


def _montage(
    rng: np.random.Generator, sources: list[Source], size: tuple[int, int], faces: int
) -> tuple[bytes, list[Points]]:
    """A JPEG with so many faces, each in a cell of its own, and where their landmarks are."""
    width, height = size
    rough = rng.uniform(60, 180, (9, 16, 3)).astype(np.float32)
    canvas = cv2.resize(rough, size, interpolation=cv2.INTER_CUBIC).clip(0, 255).astype(np.uint8)
    columns, rows = (1, 1) if faces == 1 else (5, 2)
    cell = np.array([width / columns, height / rows])
    places = []
    for number, row in enumerate(rng.choice(len(sources), faces).tolist()):
        image, landmarks = sources[row]
        scale = rng.uniform(0.5, 0.7) * cell.min() / max(image.shape[:2])
        matrix = _similarity(scale, rng.uniform(-15, 15))
        middle = (np.array([number % columns, number // columns]) + 0.5) * cell
        matrix[:, 2] = middle - matrix[:, :2] @ ((np.array(image.shape[1::-1]) - 1) / 2)
        inside = _moved(np.full_like(image, 255), matrix, size) == 255
        canvas = np.where(inside, _moved(image, matrix, size), canvas)
        places.append(landmarks @ matrix[:, :2].T + matrix[:, 2])
    content = cv2.imencode(".jpg", canvas[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
    return content.tobytes(), places


def _similarity(scale: float, degrees: float) -> Points:
    """(2, 3) without a shift."""
    turn = scale * np.exp(1j * np.deg2rad(degrees))
    return np.array([[turn.real, -turn.imag, 0], [turn.imag, turn.real, 0]])


def _moved(image: Image, matrix: Points, size: tuple[int, int]) -> Image:
    scale = float(np.sqrt(np.linalg.det(matrix[:, :2])))
    if scale < 0.5:  # or it would alias
        small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        ratio = image.shape[1] / small.shape[1], image.shape[0] / small.shape[0]
        shift = matrix[:, :2] @ (0.5 * np.array(ratio) - 0.5) + matrix[:, 2]
        matrix = np.column_stack([matrix[:, :2] * ratio, shift])
        return _moved(np.asarray(small, np.uint8), matrix, size)
    return np.asarray(cv2.warpAffine(image, matrix, size, flags=cv2.INTER_CUBIC), np.uint8)


def _off(found: Found, places: list[list[Points]]) -> str:
    """Mean distance of landmarks, in pixels of the aligned face, and how many faces were found."""
    distances = []
    for seen, truth in zip(found, places, strict=True):
        for points in truth:
            crop = np.sqrt(np.linalg.det(similarity_transform(points, TEMPLATE)[:, :2]))
            away = [float(np.linalg.norm(one - points, axis=1).mean() * crop) for one in seen]
            distances += [min(away)] if away and min(away) < 20 else []
    total = sum(map(len, places))
    return f"{np.mean(distances):.2f} px ({len(distances)} of {total})" if distances else "none"


if __name__ == "__main__":
    run_script(main)
