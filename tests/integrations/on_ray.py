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


@dataclass(frozen=True)
class Job:
    """What to classify, and how.

    Attributes:
        stores: URL or folder, and namespace, of each store. Each actor copies a folder.
        encoders: Import string.
        photos: Paths.
        folder: For files of this job.
        locked: Folder that another process has opened.
    """

    stores: list[tuple[str, str]]
    encoders: str
    photos: list[str]
    folder: str
    locked: str


class InPair:
    """Classifies by each store when two actors have work. The first batch with a photo ``7.png`` kills its actor."""

    def __init__(self, stores: list[tuple[str, str]], folder: str, **arguments: Any) -> None:
        self.folder = Path(folder)
        self.functions = []
        for store, namespace in stores:
            place = store if "://" in store else shutil.copytree(store, f"{store}-{os.getpid()}")
            self.functions.append(Classify(place, namespace=namespace, **arguments))

    def __call__(self, batch: Any) -> Any:
        self.meet()
        died = self.folder / "died"
        if not died.exists() and any(path.endswith("7.png") for path in batch["path"]):
            died.touch()
            os._exit(1)
        answers = {"process": [os.getpid()] * len(batch["path"])}
        for number, function in enumerate(self.functions):
            answers |= {f"{name} {number}": values for name, values in function({"path": batch["path"]}).items()}
        return batch | answers

    def meet(self) -> None:
        here = self.folder / "actors"
        here.mkdir(exist_ok=True)
        (here / str(os.getpid())).touch()
        while len(list(here.iterdir())) < 2:  # the test ends all processes at its deadline
            time.sleep(0.02)


def answers_of_two_actors(job: Job) -> list[dict[str, Any]]:
    import ray.data

    photos = ray.data.from_items([{"path": path, "id": i} for i, path in enumerate(job.photos)], override_num_blocks=12)
    answers = photos.map_batches(
        InPair,
        fn_constructor_args=(job.stores, job.folder),
        fn_constructor_kwargs={"image": "path", "encoders": job.encoders},
        compute=ray.data.ActorPoolStrategy(size=2),
        batch_size=2,
    )
    rows: list[dict[str, Any]] = answers.take_all()
    assert Path(job.folder, "died").exists()
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
        address="local",  # a cluster of its own, whatever RAY_ADDRESS says
        num_cpus=4,  # for two actors, and tasks beside them, on any machine
        num_gpus=0,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=100 * 2**20,
        _node_ip_address="127.0.0.1",
    )
    try:
        return {"rows": answers_of_two_actors(job), "locked": error_of_a_locked_folder(job)}
    finally:
        ray.shutdown()


if __name__ == "__main__":
    given = Job(**json.loads(sys.argv[1]))
    Path(given.folder, "answers.json").write_text(json.dumps(main(given)))
