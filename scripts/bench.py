#!/usr/bin/env python
"""Speed of zsvec and of its alternatives, in interleaved rounds.

    python scripts/bench.py stream                      classify_stream, and a plain loop
    python scripts/bench.py scale                       search and changes by the size of the store
    python scripts/bench.py calibrate                   seconds and memory of a calibration
    python scripts/bench.py runtimes PHOTOS             encoders by torch and by onnxruntime
    python scripts/bench.py service REFERENCES PHOTOS   clients of the service with an image each
    python scripts/bench.py keeping REFERENCES PHOTOS   small copies of references; images kept for labelling

REFERENCES has a sub-folder of images per category.
"""

from __future__ import annotations

import typer
from benchmarks.keeping import keeping
from benchmarks.runtimes import runtimes
from benchmarks.scale import calibrate, scale
from benchmarks.service import service
from benchmarks.stream import stream

app = typer.Typer(add_completion=False)
for command in (stream, scale, calibrate, runtimes, service, keeping):
    app.command()(command)

if __name__ == "__main__":
    app()
