#!/usr/bin/env python
"""Speed of zsvec beside other ways to do the same, measured side by side in one run.

    python scripts/bench.py stream            classify_stream against plain loops, and pipelines of other libraries
    python scripts/bench.py scale             search, and adding a category, by the size of the store; beside faiss
    python scripts/bench.py soak              memory, order and errors of a long stream while categories change
    python scripts/bench.py pipeline FOLDER   import and classify against a loop that decodes, preprocesses and encodes
    python scripts/bench.py search            search + aggregation + fusion against a matrix product and a maximum
    python scripts/bench.py runtimes FOLDER   encoders by torch and by onnxruntime: rates, and the start of a command
    python scripts/bench.py threads FOLDER PHOTOS  threads with an image each against one stream
    python scripts/bench.py service FOLDER PHOTOS  clients of the service with an image each against one stream
    python scripts/bench.py keeping FOLDER PHOTOS  a stream that keeps images for labelling, beside one that does not
    python scripts/bench.py spin FOLDER       streams by torch beside busy processes, by GOMP_SPINCOUNT
    python scripts/bench.py decoding FOLDER   decoding and preprocessing, beside Pillow alone
    python scripts/bench.py server URL        a store on a Qdrant server: first batches, commits, beside bare requests
    python scripts/bench.py copies FOLDER     small copies of reference images: what an import and a stream take
    python scripts/bench.py calibrate         seconds and memory of a calibration, and of adding a category

FOLDER has a sub-folder of images per category. Each command prints tables; `--out FOLDER` keeps them as JSON with the
machine and the versions, and a plot. What is compared with: `pip install "zsvec[bench]"`.
"""

from __future__ import annotations

import typer
from benchmarks.basics import calibrate, pipeline, search
from benchmarks.copies import copies
from benchmarks.decoding import decoding
from benchmarks.keeping import keeping
from benchmarks.runtimes import runtimes
from benchmarks.scale import scale
from benchmarks.server import server
from benchmarks.service import service
from benchmarks.soak import soak
from benchmarks.spin import spin
from benchmarks.stream import stream
from benchmarks.threads import threads

app = typer.Typer(add_completion=False)
commands = (
    *(stream, scale, soak, pipeline, search, runtimes, threads),
    *(service, keeping, spin, decoding, server, copies, calibrate),
)
for command in commands:
    app.command()(command)

if __name__ == "__main__":
    app()
