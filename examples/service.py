"""A small web service: a photo in, the quality of its faces out.

    pip install '.[service]'
    uvicorn --app-dir examples service:app
    curl --data-binary @photo.jpg http://127.0.0.1:8000/faces

The shipped model is for research: name a file of your own in MODEL (an .onnx file of
export_onnx.py). `python -m sdd_fiqa --fetch` fetches the detector before the first request.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.concurrency import run_in_threadpool

import sdd_fiqa
from sdd_fiqa.errors import UnreadableImage

MAX_BYTES = 20_000_000
ACCEPTED_SHARE = 0.95  # of the calibration faces

app = FastAPI()


@cache
def scorer() -> sdd_fiqa.Scorer:
    """The one scorer that all requests share."""
    return sdd_fiqa.load(os.environ.get("MODEL", "small"))


@app.post("/faces")
async def faces(request: Request) -> list[dict[str, Any]]:
    """The faces of the photo in the request's body, the largest first."""
    photo = bytearray()
    async for part in request.stream():
        photo += part
        if len(photo) > MAX_BYTES:
            raise HTTPException(413, f"the photo has more than {MAX_BYTES} bytes")
    if not photo:
        raise HTTPException(400, "the body is empty: send the bytes of an image file")
    try:
        found = await run_in_threadpool(scorer(), bytes(photo))
    except UnreadableImage as error:
        raise HTTPException(422, f"the photo: {error}") from error
    return [
        {
            "score": face.score,
            "percentile": face.percentile,
            "accepted": face.accepted(ACCEPTED_SHARE),
            "box": face.box,
        }
        for face in found
    ]
