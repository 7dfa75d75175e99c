#!/usr/bin/env python
"""Measures the speed of zsvec and of alternatives in interleaved rounds.

    python scripts/bench.py stream                      classify_stream compared with a plain loop
    python scripts/bench.py scale                       searches and changes of stores of several sizes
    python scripts/bench.py calibrate                   seconds and memory of a calibration
    python scripts/bench.py large URL PHOTOS            exact and approximate searches of a Qdrant server
    python scripts/bench.py attached URL PHOTOS         a collection of others, attached and copied
    python scripts/bench.py follow URL                  a folder that follows a server, also over cut connections
    python scripts/bench.py runtimes PHOTOS             encoders on torch and on onnxruntime
    python scripts/bench.py service REFERENCES PHOTOS   parallel requests of one image to the service
    python scripts/bench.py memory REFERENCES PHOTOS    memory of the service over 3,000 requests
    python scripts/bench.py regions REFERENCES PHOTOS   boxes in large photographs, and crops in memory
    python scripts/bench.py keeping REFERENCES PHOTOS   storing small copies, and keeping images in the inbox
    python scripts/bench.py archive                     export and import of archives

REFERENCES has a sub-folder of images for each category.
"""

from __future__ import annotations

import typer
from benchmarks.archive import archive
from benchmarks.attached import attached
from benchmarks.following import follow
from benchmarks.keeping import keeping
from benchmarks.large import large
from benchmarks.regions import regions
from benchmarks.runtimes import runtimes
from benchmarks.scale import calibrate, scale
from benchmarks.service import memory, service
from benchmarks.stream import stream

app = typer.Typer(add_completion=False)
for command in (
    stream,
    scale,
    calibrate,
    large,
    attached,
    follow,
    archive,
    runtimes,
    service,
    memory,
    regions,
    keeping,
):
    app.command()(command)

if __name__ == "__main__":
    app()
