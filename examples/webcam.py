"""Scores the largest face that a camera sees, frame by frame, until Ctrl-C.

    python examples/webcam.py           # the first camera
    python examples/webcam.py 1         # another one

A video file may stand in for the camera: python examples/webcam.py clip.mp4
"""

import sys
import time

import cv2

import sdd_fiqa


def main(source: str = "0") -> None:
    """Prints a line a frame: milliseconds, score, and whether 95 % of faces score higher."""
    scorer = sdd_fiqa.load()
    camera = cv2.VideoCapture(int(source) if source.isdigit() else source)
    if not camera.isOpened():
        sys.exit(f"{source}: no such camera or video")
    while True:
        good, frame = camera.read()  # (H, W, 3) uint8 BGR
        if not good:
            break
        start = time.perf_counter()
        faces = scorer(frame[..., ::-1], most=1)
        words = [f"{face.score:.1f}{'' if face.accepted(0.95) else ' low'}" for face in faces]
        print(f"{1000 * (time.perf_counter() - start):.0f} ms:", *words or ["no face"])


if __name__ == "__main__":
    main(*sys.argv[1:])
