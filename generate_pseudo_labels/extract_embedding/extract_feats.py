"""Runs a face recogniser over the listed images.

    python generate_pseudo_labels/extract_embedding/extract_feats.py --weights sface
    torchrun --nproc-per-node 8 generate_pseudo_labels/extract_embedding/extract_feats.py \
        --weights R_50.pth

reads annotations/DATA.labelpath and writes annotations/feats_npy/. After a kill, the same command
resumes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from common.cli import EXIT_DONE, EXIT_SKIPPED, check_at_least, note, run_script
from common.distributed import ProcessGroup, join_process_group
from dataset.alignment_check import doubt_alignment
from dataset.embedding_writer import FeatureWriter
from dataset.lists import LABELPATH, ImageList, read_table
from dataset.loader import Batch, batches, one_behind
from dataset.path_lists import refuse_missing
from models.backbones import Backbone
from models.recognisers import Recogniser, load_recogniser
from sdd_fiqa.files import lock_folder
from sdd_fiqa.number import count_of
from sdd_fiqa.onnx_runner import Outputs

PROBED = 8  # faces on which bf16 is compared with float32


def main(
    weights: str,
    backbone: Backbone | None = None,
    out_dir: Path = Path("annotations"),
    batch_size: int | None = None,
    num_workers: int | None = None,
    flip: bool = False,
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    device: str = "auto",
) -> int:
    """Runs a face recogniser over the images of annotations/DATA.labelpath.

    Args:
        weights: sface or w600k_mbf (fetched once), an .onnx file, or a torch checkpoint with its
            recognition head.
        backbone: the network of a torch checkpoint; found from the file when not given.
        out_dir: the folder of DATA.labelpath; the embeddings go to its feats_npy.
        batch_size: faces a batch; by default 16 a core on a CPU, 512 on a GPU.
        num_workers: decoding threads; by default one a core.
        flip: add the mirrored face's embedding before normalising.
        precision: auto takes bf16 where the device is fast at it.
        device: auto, cpu, cuda or cuda:i.
    """
    check_at_least(1, {"--batch-size": batch_size, "--num-workers": num_workers})
    table = read_table(out_dir / LABELPATH)
    with join_process_group(device) as world:
        first = next(batches(table, np.arange(min(PROBED, len(table))), PROBED))
        probe = first.faces[first.readable]  # the same in all processes
        recogniser = load_recogniser(weights, backbone, device, precision, probe)
        about = {  # equal descriptions mean the same work
            "list": {"path": str(table.file), "sha256": table.sha256, "rows": len(table)},
            "weights": {k: v for k, v in recogniser.about.items() if k != "preprocessing"},
            "preprocessing": {**recogniser.about["preprocessing"], "flip": flip},
        }
        folder, size = out_dir / "feats_npy", recogniser.dimension
        writer = FeatureWriter(folder, len(table), size, about, world.rank)
        with lock_folder(folder) if world.first else nullcontext():
            unreadable = writer.finished() if world.first else None
            if not world.any(unreadable is not None):
                refuse_missing(table.file, table.paths(), "--out-dir", out_dir)
                if world.first and (doubt := doubt_alignment(table)):
                    note(f"note: {doubt}")
                run(table, recogniser, writer, world, batch_size, num_workers, flip)
                unreadable = writer.finish(table) if world.first else None
        world.barrier()
    if unreadable is None:  # another process tells
        return EXIT_DONE
    print(
        f"{writer.features}: {count_of(len(table), 'row')} of {recogniser.dimension}, by {weights}"
    )
    for entry in unreadable[:5]:
        print(f"unreadable: {entry['path']}: {entry['reason']}")
    if unreadable:
        beside = writer.features.with_suffix(".json")
        count = count_of(len(unreadable), "image")
        print(f"unreadable: {count}, all named in {beside}; to try them again,")
        print("remove that file and run this again")
    return EXIT_SKIPPED if unreadable else EXIT_DONE


def run(
    table: ImageList,
    recogniser: Recogniser,
    writer: FeatureWriter,
    world: ProcessGroup,
    batch_size: int | None,
    num_workers: int | None,
    flip: bool,
) -> None:
    """Embeds the rows that are missing; each process takes a contiguous part of them."""
    if world.first:
        writer.prepare()
    world.barrier()
    # The same size in all processes, so that machines with different cores cut the list alike.
    size = batch_size or max(1, world.total(recogniser.batch_size) // world.size)
    missing = writer.missing_batches(size)
    world.barrier()  # all processes read the journals before any of them writes to one
    share = missing[world.share(len(missing)).start : world.share(len(missing)).stop]
    rows = (share[:, None] * size + np.arange(size)).ravel()
    rows = rows[rows < len(table)]
    bar = tqdm(total=len(rows), desc="embed", unit=" images", disable=not world.first)

    def begin() -> Iterator[tuple[Batch, list[Callable[[], Outputs]]]]:
        for batch in batches(table, rows, size, num_workers):
            begun = [recogniser.begin(batch.faces)]
            if flip:
                begun.append(recogniser.begin(np.ascontiguousarray(batch.faces[:, :, ::-1])))
            yield batch, begun

    with bar:
        for batch, begun in one_behind(begin()):
            embeddings = np.mean([wait() for wait in begun], axis=0)
            writer.write(int(batch.rows[0]), np.asarray(embeddings), batch.failures)
            bar.update(len(batch.rows))
    world.barrier()


if __name__ == "__main__":
    run_script(main)
