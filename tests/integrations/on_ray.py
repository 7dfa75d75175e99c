"""Classifies photos by Ray Data with two actors, and writes the rows as JSON. Argument: the `Job` as JSON."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zsvec.integrations.batches import Classify

DEADLINE_S = 120.0


@dataclass(frozen=True)
class Job:
    """What to classify, and how.

    Attributes:
        store: URL, or a folder, which each actor copies.
        namespace: Of the store.
        encoders: Import string.
        photos: Paths.
        folder: For files of this job.
        locked: Folder that another process has opened.
    """

    store: str
    namespace: str
    encoders: str
    photos: list[str]
    folder: str
    locked: str


class InPair(Classify):
    """Classifies when two actors have work. Dies on the first batch with a photo ``7.png``."""

    def __init__(self, store: str, folder: str, *, image: str, dies: bool, **settings: Any) -> None:
        if "://" not in store:
            copy = f"{store}-{os.getpid()}"
            shutil.copytree(store, copy)
            store = copy
        super().__init__(store, image=image, **settings)
        self.folder, self.dies = Path(folder), dies

    def __call__(self, batch: Any) -> Any:
        self.meet()
        died = self.folder / "died"
        if self.dies and not died.exists() and any(path.endswith("7.png") for path in batch[self.image]):
            died.touch()
            os._exit(1)
        return super().__call__(batch) | {"process": [os.getpid()] * len(batch[self.image])}

    def meet(self) -> None:
        here = self.folder / "actors"
        here.mkdir(exist_ok=True)
        (here / str(os.getpid())).touch()
        end = time.monotonic() + DEADLINE_S
        while len(list(here.iterdir())) < 2:
            assert time.monotonic() < end, "Ray has started one actor only"
            time.sleep(0.02)


def classified(job: Job, *, dies: bool) -> list[dict[str, Any]]:
    import ray.data

    folder = Path(job.folder) / f"dies {dies}"
    folder.mkdir()
    photos = ray.data.from_items([{"path": path, "id": i} for i, path in enumerate(job.photos)], override_num_blocks=12)
    answers = photos.map_batches(
        InPair,
        fn_constructor_args=(job.store, str(folder)),
        fn_constructor_kwargs={
            "image": "path",
            "dies": dies,
            "namespace": job.namespace,
            "encoders": job.encoders,
        },
        compute=ray.data.ActorPoolStrategy(size=2),
        batch_size=2,
    )
    rows: list[dict[str, Any]] = answers.take_all()
    assert (folder / "died").exists() == dies
    return rows


def error_of_a_locked_folder(job: Job) -> str:
    import ray.data
    import ray.exceptions

    photos = ray.data.from_items([{"path": job.photos[0]}])
    try:
        photos.map_batches(Classify(job.locked, image="path", encoders=job.encoders)).take_all()
    except ray.exceptions.RayTaskError as error:
        return str(error)  # with the traceback of the worker
    return ""


def main(job: Job) -> dict[str, Any]:
    import ray

    ray.init(
        num_cpus=4,  # for two actors, and tasks beside them, on any machine
        num_gpus=0,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=100 * 2**20,
        _node_ip_address="127.0.0.1",
    )
    try:
        return {
            "all": classified(job, dies=False),
            "killed": classified(job, dies=True),
            "locked": error_of_a_locked_folder(job),
        }
    finally:
        ray.shutdown()


if __name__ == "__main__":
    given = Job(**json.loads(sys.argv[1]))
    Path(given.folder, "answers.json").write_text(json.dumps(main(given)))
