"""Executes a plan: asks and draws with concurrent requests, and writes each result to disk before the next step.

To resume a run after a kill, an error, an interruption or the end of the budget, run the plan again. Answers and images
on disk are not bought again. Requests that were in flight at a kill are sent again with the same idempotency key.
Services that honour ``Idempotency-Key`` bill such a request once.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, TypeVar

from zsvec.errors import GenerationError
from zsvec.generation import prompts
from zsvec.generation.client import Client, Declined
from zsvec.generation.features import Asked, Knowledge, NameGroup, analyse
from zsvec.generation.manifest import (
    AnswerRecord,
    DeclinedRecord,
    ImageRecord,
    Manifest,
    Record,
    images,
    read_manifest,
    settled,
    spent,
)
from zsvec.generation.plan import ROUNDING, Plan
from zsvec.generation.prices import image_cost, text_cost
from zsvec.inputs.categories import as_words
from zsvec.settings.settings import GenerationSettings

_log = logging.getLogger(__name__)

Job = TypeVar("Job")
Done = TypeVar("Done", AnswerRecord, ImageRecord | DeclinedRecord)
Result: TypeAlias = ImageRecord | DeclinedRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """Result of a run and of all earlier runs over the folder, for the categories of the plan.

    Attributes:
        images: Images of the categories; none if only texts were wanted.
        declined: Images that the service declined to draw; none if only texts were wanted.
        knowledge: Answers about the categories.
        spent: Sum of the known costs in dollars.
        out_of_budget: Whether the budget ended the run before every image was bought.
        error: The error that ended the run, if any.
    """

    images: tuple[ImageRecord, ...]
    declined: tuple[DeclinedRecord, ...]
    knowledge: Knowledge
    spent: float
    out_of_budget: bool
    error: GenerationError | None


class Run:
    """One run of a plan, with an open manifest and an open client.

    Attributes:
        knowledge: Answers about the categories.
        out_of_budget: Whether the budget ended the run.
    """

    def __init__(self, plan: Plan, settings: GenerationSettings, manifest: Manifest, client: Client) -> None:
        self._plan = plan
        self._settings = settings
        self._manifest = manifest
        self._client = client
        limit = plan.budget.dollars
        # The estimated cost of a request is subtracted until the actual cost is known.
        self._dollars_left = math.inf if limit is None else limit - spent(manifest.records, plan.categories)
        self.knowledge = Knowledge.of(manifest.records)
        self.out_of_budget = False

    def analyse(self) -> list[NameGroup]:
        """Asks the language model for features of the categories, and returns the compared groups of categories."""
        plan = self._plan
        names = plan.described if plan.texts_only else sorted({name for name, _ in plan.places})
        # A category that needs no more images can still be confused with the others.
        others = {**dict.fromkeys(plan.categories, ""), **plan.others}
        return analyse(self.knowledge, names, others, plan.measured, self._ask)

    def draw(self, groups: Sequence[NameGroup]) -> Generator[Result, None, None]:
        """Buys the images of the plan, and yields each result after writing it to disk. Raises errors of requests."""
        places = () if self.out_of_budget else self._plan.places
        jobs = [
            (name, index, prompts.draw(as_words(name), index, **self.knowledge.look(name, groups)))
            for name, index in places
        ]
        yield from self._at_once(jobs, self._buy, image_cost(None, self._settings))

    def _ask(self, questions: Sequence[Asked]) -> None:
        if self.out_of_budget:
            return  # no image would use the answers, and each answer costs
        each = self._plan.cost_of_questions
        estimate = None if each is None else each / max(1, sum(self._plan.questions.values()))
        before = len(self._manifest.records)
        try:
            for _ in self._at_once(questions, self._answer, estimate):
                pass
        finally:
            # In the order of the manifest, so that a resumed run makes the same prompts.
            self.knowledge.learn_all(self._manifest.records[before:])

    def _answer(self, asked: Asked) -> AnswerRecord:
        question, about = asked
        answer = self._client.ask(question, self._key(question.instructions, question.data))
        outcome: dict[str, Any]
        if isinstance(answer, Declined):
            outcome = {"answer": None, "declined": f"{answer.code}: {answer.reason}", "response": ""}
        else:
            outcome = {"answer": answer.value.model_dump(), "response": answer.response}
        record = AnswerRecord(
            step=question.step,
            version=prompts.VERSION,
            about=list(about),
            model=self._settings.language_model,
            cost=text_cost(answer.usage, self._settings),
            **outcome,
        )
        self._manifest.append(record)
        return record

    def _buy(self, job: tuple[str, int, str]) -> Result:
        name, index, prompt = job
        settings = self._settings
        start = time.monotonic()
        again = self._manifest.purchases(name, index)  # a new key, so that a deleted image is drawn again
        key = self._key(name, index, prompt, settings.image_model, settings.image_size, settings.image_quality, again)
        picture = self._client.draw(prompt, key)
        asked: dict[str, Any] = {"category": name, "index": index, "prompt": prompt, "model": settings.image_model}
        if isinstance(picture, Declined):
            declined = DeclinedRecord(
                **asked, code=picture.code, reason=picture.reason, cost=self._cost_of_nothing(picture)
            )
            self._manifest.append(declined)
            return declined
        return self._manifest.add_image(
            picture.data,
            **asked,
            revised_prompt=picture.revised_prompt,
            version=prompts.VERSION,
            size=settings.image_size,
            quality=settings.image_quality,
            response=picture.response,
            seconds=round(time.monotonic() - start, 3),
            cost=image_cost(picture.usage, settings, picture.unusable + 1),
        )

    def _cost_of_nothing(self, declined: Declined) -> float | None:
        """Returns the cost of a declined image in dollars. Unusable responses are billed too."""
        if not declined.unusable:
            return 0.0
        return image_cost(declined.usage if declined.usage.output else None, self._settings, declined.unusable)

    def _key(self, *parts: Any) -> str:
        """Returns the idempotency key of a request, the same in each run over the folder."""
        return hashlib.sha256(json.dumps([self._manifest.id, *parts]).encode()).hexdigest()[:32]

    def _at_once(
        self, jobs: Iterable[Job], work: Callable[[Job], Done], estimate: float | None
    ) -> Generator[Done, None, None]:
        """Runs jobs in threads, as many at once as settings and budget allow, and yields the results.

        After an error or an interruption, no new job starts. Running requests are awaited, because they are billed.
        """
        if estimate is None:  # without a price, a budget in dollars buys nothing
            estimate = 0.0 if self._plan.budget.dollars is None else math.inf
        todo = deque(jobs)
        pending: set[Future[Done]] = set()
        with ThreadPoolExecutor(self._settings.concurrency, thread_name_prefix="zsvec-generation") as pool:
            try:
                while todo or pending:
                    while (
                        todo and len(pending) < self._settings.concurrency and estimate <= self._dollars_left + ROUNDING
                    ):
                        self._dollars_left -= estimate
                        pending.add(pool.submit(work, todo.popleft()))
                    if not pending:  # no running job can free budget by costing less than estimated
                        self.out_of_budget = True
                        return
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    for future in done:
                        result = future.result()
                        self._dollars_left += estimate - (result.cost or 0.0)
                        yield result
            except BaseException:
                self._client.stop()
                if pending:
                    _log.warning(
                        "waiting for %d requests that are paid for; interrupt again to leave them", len(pending)
                    )
                raise


def carry_out(
    plan: Plan,
    settings: GenerationSettings,
    *,
    track: Callable[[Iterable[Result]], Iterable[Result]] = iter,
) -> Drawn:
    """Executes a plan. Errors of requests are not raised, but returned in `Drawn.error`.

    Args:
        plan: The plan.
        settings: Models and prices.
        track: Wraps the iteration over the images, to show progress.

    Raises:
        InvalidInputError: The folder is in use, or cannot be used.
        GenerationError: There is something to buy, but the API key or the address of the service is missing or invalid.
    """
    plan = _without_finished(plan, read_manifest(plan.folder), settings)
    with ExitStack() as opened:
        buys = plan.places or (plan.texts_only and any(plan.questions.values()))
        client = opened.enter_context(Client(settings)) if buys else None  # fails before the folder is made
        manifest = opened.enter_context(Manifest(plan.folder))
        knowledge, error = Knowledge.of(manifest.records), None
        out_of_budget = plan.excluded > 0
        plan = _without_finished(plan, manifest.records, settings)  # another run may have ended meanwhile
        if client and (plan.places or plan.texts_only):
            run = Run(plan, settings, manifest, client)
            try:
                with closing(run.draw(run.analyse())) as results:  # closes `results` even if `track` fails
                    for _ in track(results):
                        pass
            except GenerationError as exc:
                error = exc
            knowledge, out_of_budget = run.knowledge, run.out_of_budget or out_of_budget
        records = manifest.records
        bought = images(records, plan.folder).values()
        declined = (record for record in records if isinstance(record, DeclinedRecord))
        drawn = () if plan.texts_only else plan.categories
        return Drawn(
            images=tuple(record for record in bought if record.category in drawn),
            declined=tuple(record for record in declined if record.category in drawn),
            knowledge=knowledge,
            spent=spent(records, plan.categories),
            out_of_budget=out_of_budget,
            error=error,
        )


def _without_finished(plan: Plan, records: Sequence[Record], settings: GenerationSettings) -> Plan:
    """Returns the plan without the images that the folder has, and those that the service has declined."""
    finished = images(records, plan.folder).keys() | settled(records, settings.image_model)
    return replace(plan, places=tuple(place for place in plan.places if place not in finished))
