"""The routes that Label Studio calls: ``/health``, ``/setup``, ``/versions``, ``/predict`` and ``/webhook``.

The shapes of requests and responses are those of label-studio-ml-backend.
"""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import datetime
from typing import Annotated, Any
from unicodedata import normalize

from fastapi import APIRouter, Request
from pydantic import AwareDatetime, BaseModel, Field
from starlette.responses import Response

from zsvec import Classifier, Prediction, checked_name, content_hash
from zsvec.errors import ImageError
from zsvec.service.admission.queue import ClientLeft
from zsvec.service.api.common import By, Runs, of_state
from zsvec.service.label_studio.config import control_of
from zsvec.service.label_studio.images import LabelStudio
from zsvec.service.problems import JSON, Problem
from zsvec.service.uploads import Upload, sent_json

_log = logging.getLogger(__name__)

_AT_ONCE = 8  # images of a request that are fetched and classified at once
_MAX_TASKS = 1000  # of a request
_TIMEOUT_S = 60.0  # to fetch all images of a request, without the time to classify them
_LEARNED = ("ANNOTATION_CREATED", "ANNOTATION_UPDATED")

router = APIRouter(include_in_schema=False)


class _Setup(BaseModel):
    config: Annotated[str, Field(alias="schema")]


class _Task(BaseModel):
    data: dict[str, Any]


class _Predict(BaseModel):
    tasks: Annotated[list[_Task], Field(max_length=_MAX_TASKS)]
    label_config: str


class _Action(BaseModel):
    action: str


class _Annotation(BaseModel):
    result: list[dict[str, Any]] = []
    was_cancelled: bool | None = False
    updated_at: AwareDatetime | None = None


class _Project(BaseModel):
    label_config: str


class _Event(BaseModel):
    annotation: _Annotation
    task: _Task
    project: _Project


@router.get("/health")
async def health(request: Request) -> Response:
    """Returns that the backend is up, or status 503 while the encoders are loaded or the store is away."""
    if problem := await request.app.state.health.problem():
        raise Problem(503, problem)
    return JSON({"status": "UP", "model_class": "zsvec"})


@router.post("/setup")
async def setup(request: Request, work: Runs) -> Response:
    """Checks the labelling configuration of a project, and returns the version of the predictions.

    The address and the token in the request are ignored: the operator names the Label Studio to trust.
    """
    control_of((await sent_json(request, _Setup)).config)
    return JSON({"model_version": str(await work.run(lambda: work.classifier.revision))})


@router.get("/versions")
async def versions(work: Runs) -> Response:
    """Returns the version of the predictions, of which there is one at a time."""
    return JSON({"versions": [str(await work.run(lambda: work.classifier.revision))]})


@router.post("/predict")
async def predict(request: Request, work: Runs) -> Response:
    """Returns one prediction for each task, in order.

    Its version is the revision of the store that the image was compared with, so Label Studio asks again after each
    change. Without an image, the version is the newest one.
    """
    work.check_room(1)  # before the body is read
    given = await sent_json(request, _Predict)
    control = control_of(given.label_config)
    many, newest = await work.run(lambda: (work.classifier.labels == "many", work.classifier.revision))
    values = [task.data.get(control.field) for task in given.tasks]
    predictions: list[Prediction] = []
    seconds = _TIMEOUT_S
    for first in range(0, len(values), _AT_ONCE):
        async with request.app.state.label_studio.groups:
            if await request.is_disconnected():
                raise ClientLeft
            begun = time.monotonic()
            group = values[first : first + _AT_ONCE]
            fetched = await _all_fetched(request, group, seconds)
            seconds -= time.monotonic() - begun
            images = [image for image in fetched if isinstance(image, Upload)]
            found = iter(await work.classify(images, 1, request.receive) if images else ())
        predictions += [image if isinstance(image, Prediction) else next(found) for image in fetched]
    revisions = [newest if one.revision is None else one.revision for one in predictions]
    return JSON(
        {
            "results": [
                {**control.result(one, many=many), "model_version": str(revision)}
                for one, revision in zip(predictions, revisions, strict=True)
            ]
        }
    )


async def _all_fetched(request: Request, values: list[object], seconds: float) -> list[Upload | Prediction]:
    """Returns the images of a group. If one raises, the others end first, so that ``groups`` bounds all fetches."""
    try:
        async with asyncio.TaskGroup() as tasks:
            fetched = [tasks.create_task(_fetched(request, value, seconds)) for value in values]
    except ExceptionGroup as exc:
        raise exc.exceptions[0] from None
    return [one.result() for one in fetched]


async def _fetched(request: Request, value: object, seconds: float) -> Upload | Prediction:
    """Returns the image of a task, or the prediction for an image that cannot be fetched."""
    label_studio: LabelStudio = request.app.state.label_studio
    try:
        return await label_studio.image(value, seconds)
    except ImageError as exc:
        _log.warning("no prediction for a task: %s", exc)
        return Prediction(source="", error=str(exc))


@router.post("/webhook")
async def webhook(request: Request, work: Runs, by: By) -> Response:
    """Makes the image of an annotated task a reference of the chosen categories. Other events change nothing.

    If an image may have several categories, categories that are no choice of the project keep the image: they may be
    choices of other projects. An event repeated at once changes nothing, since the content of an image identifies the
    reference. An annotation that is older than one that this process has learned for the image is ignored; a date
    more than five minutes in the future counts as the time of arrival.
    """
    action = (await sent_json(request, _Action)).action
    if action not in _LEARNED:
        return JSON({"status": "Unknown event"})
    event = await sent_json(request, _Event)
    control = control_of(event.project.label_config)
    labels = control.labels(event.annotation.result)
    changed = False
    label_studio: LabelStudio = request.app.state.label_studio
    updated_at = label_studio.counted(event.annotation.updated_at)  # before it waits for other annotations
    if labels and not event.annotation.was_cancelled:
        async with label_studio.annotations:
            image = await label_studio.image(event.task.data.get(control.field))
            async with label_studio.correcting:
                changed = await work.run(
                    lambda: _corrected(work.classifier, image, labels, control.choices, label_studio, updated_at),
                    by=by,
                )
    return JSON({"status": "ok", "result": {"changed": changed}}, 201)


def _corrected(
    classifier: Classifier,
    image: Upload,
    labels: list[str],
    choices: frozenset[str],
    label_studio: LabelStudio,
    updated_at: datetime | None,
) -> bool:
    """Makes an image a reference of the chosen categories, as `webhook` says. Returns whether anything changed."""
    names = set(map(checked_name, labels))
    known = content_hash(image, **classifier.settings.image_limits())
    held = set(classifier.references.holders([known]).get(known, ()))
    decided = known, 0
    if classifier.labels == "many":
        decided = known, hash(choices)  # the choices themselves may take 100 kB
        names |= held - {normalize("NFC", choice).strip() for choice in choices}  # names in stored form
    if label_studio.is_late(decided, updated_at):
        return False
    if names != held:
        with of_state():
            classifier.correct(image, sorted(names))
    label_studio.learned(decided, updated_at)
    return names != held
