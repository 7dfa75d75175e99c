"""Carries out a plan: asks and draws, several requests at once, and keeps each result before the next step.

A run that is killed, or ended by its budget, by an error or by the user, is resumed by running it again:
purchases on disk are not bought again. Requests that were on their way when a process was killed are sent
again with the same idempotency key; services that honour ``Idempotency-Key`` bill once.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, TypeVar

from zsvec.errors import GenerationError
from zsvec.generation import prompts
from zsvec.generation.budget import Purse
from zsvec.generation.client import MOST_UNUSABLE, Client
from zsvec.generation.features import Asked, Group, Knowledge, analyse
from zsvec.generation.manifest import AnswerRecord, DeclinedRecord, ImageRecord, Manifest, images, settled, spent
from zsvec.generation.plan import Plan
from zsvec.generation.prices import image_cost, text_cost
from zsvec.generation.responses import Declined
from zsvec.inputs.categories import as_words
from zsvec.settings.settings import GenerationSettings

_log = logging.getLogger(__name__)

Job = TypeVar("Job")
Done = TypeVar("Done", AnswerRecord, ImageRecord | DeclinedRecord)
Result: TypeAlias = ImageRecord | DeclinedRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """The purchases in the folder of a run that concern its categories.

    Attributes:
        categories: The categories of the plan.
        images: All their images, those of earlier runs included.
        declined: Images that the service does not draw.
        knowledge: The answers about the categories.
        spent: Dollars, as far as the costs are known, earlier runs included.
        out_of_budget: Whether the budget ended the run before every image was bought.
        error: The error that ended the run, if one did.
    """

    categories: tuple[str, ...]
    images: tuple[ImageRecord, ...]
    declined: tuple[DeclinedRecord, ...]
    knowledge: Knowledge
    spent: float
    out_of_budget: bool
    error: GenerationError | None


class _OutOfBudgetError(Exception):
    """A question would cost more than is left."""


class Run:
    """One run over the folder of a plan.

    Args:
        plan: What to do.
        settings: The models to do it with.
        manifest: Of the plan's folder, open.
        client: Of the service, open.
    """

    def __init__(self, plan: Plan, settings: GenerationSettings, manifest: Manifest, client: Client) -> None:
        self._plan = plan
        self._settings = settings
        self._manifest = manifest
        self._client = client
        self._purse = Purse(plan.budget.dollars, spent(manifest.records, plan.categories))
        self.knowledge = Knowledge.of(manifest.records)
        self.out_of_budget = False

    def analyse(self) -> list[Group]:
        """Ask for what the prompts of the images need, and return the compared groups."""
        plan = self._plan
        names = sorted({name for name, _ in plan.places})
        # A category that has all its images can still be confused with the others.
        others = {**dict.fromkeys(plan.categories, ""), **plan.others}
        try:
            return analyse(self.knowledge, names, others, plan.measured, self._ask)
        except _OutOfBudgetError:
            self.out_of_budget = True
            return []

    def draw(self, groups: Sequence[Group]) -> Generator[Result, None, None]:
        """Buy the images of the plan, and yield each when it is filed.

        Raises:
            GenerationError: The service cannot do it. Images that have arrived are kept.
        """
        places = () if self.out_of_budget else self._plan.places
        jobs = [(name, index, self._prompt(name, index, groups)) for name, index in places]
        yield from self._at_once(jobs, self._buy, image_cost(None, self._settings))

    def _prompt(self, name: str, index: int, groups: Sequence[Group]) -> str:
        look = self.knowledge.look(name, groups)
        return prompts.draw(
            as_words(name),
            index,
            scenes=look["scenes"],
            common=look["common"],
            distinguishing=look["distinguishing"],
        )

    def _ask(self, questions: Sequence[Asked]) -> None:
        each = self._plan.cost_of_questions
        estimate = None if each is None else each / max(1, sum(self._plan.questions.values()))
        before = len(self._manifest.records)
        try:
            for _ in self._at_once(questions, self._answer, estimate):
                pass
        finally:
            # In the order of the file: a run that resumes this one makes the same prompts from it.
            self.knowledge.learn_all(self._manifest.records[before:])
        if self.out_of_budget:
            raise _OutOfBudgetError

    def _answer(self, asked: Asked) -> AnswerRecord:
        question, about = asked
        answer = self._client.ask(question, self._key(question.instructions, question.data))
        declined = f"{answer.code}: {answer.reason}" if isinstance(answer, Declined) else None
        record = AnswerRecord(
            step=question.step,
            version=prompts.VERSION,
            about=list(about),
            answer=None if isinstance(answer, Declined) else answer.value.model_dump(),
            declined=declined,
            model=self._settings.language_model,
            response="" if isinstance(answer, Declined) else answer.response,
            cost=text_cost(answer.usage, self._settings),
        )
        self._manifest.append(record)
        return record

    def _buy(self, job: tuple[str, int, str]) -> Result:
        name, index, prompt = job
        settings = self._settings
        start = time.monotonic()
        again = sum(
            isinstance(record, ImageRecord) and (record.category, record.index) == (name, index)
            for record in self._manifest.records
        )  # times that the image was bought and deleted; the next one shall be another
        key = self._key(name, index, prompt, settings.image_model, settings.image_size, settings.image_quality, again)
        picture = self._client.draw(prompt, key)
        if isinstance(picture, Declined):
            declined = DeclinedRecord(
                category=name,
                index=index,
                prompt=prompt,
                code=picture.code,
                reason=picture.reason,
                model=settings.image_model,
                cost=self._cost_of_nothing(picture),
            )
            self._manifest.append(declined)
            return declined
        received = self._manifest.receive(
            picture.data,
            category=name,
            index=index,
            prompt=prompt,
            revised_prompt=picture.revised_prompt,
            version=prompts.VERSION,
            model=settings.image_model,
            size=settings.image_size,
            quality=settings.image_quality,
            response=picture.response,
            seconds=round(time.monotonic() - start, 3),
            cost=image_cost(picture.usage, settings),
        )
        return self._manifest.file_image(received)

    def _cost_of_nothing(self, declined: Declined) -> float | None:
        """Dollars spent on an image that was not received: unusable responses are paid for, too."""
        if declined.usage.output:
            return image_cost(declined.usage, self._settings)
        each = image_cost(None, self._settings)
        return each and each * MOST_UNUSABLE if declined.code == "unusable" else 0.0

    def _key(self, *parts: Any) -> str:
        """The idempotency key of a request: the same in each run over the same folder."""
        return hashlib.sha256(json.dumps([self._manifest.id, *parts]).encode()).hexdigest()[:32]

    def _at_once(self, jobs: Iterable[Job], work: Callable[[Job], Done], estimate: float | None) -> Iterator[Done]:
        """Run jobs in threads, as many at once as settings and budget allow, and yield their results.

        After an error, or an interruption, no job is begun, and requests on their way are waited for: they are
        paid for.
        """
        todo = deque(jobs)
        pending: set[Future[Done]] = set()
        failure: BaseException | None = None
        with ThreadPoolExecutor(self._settings.concurrency, thread_name_prefix="zsvec-generation") as pool:
            try:
                while todo or pending:
                    while todo and len(pending) < self._settings.concurrency and self._purse.reserve(estimate):
                        pending.add(pool.submit(work, todo.popleft()))
                    if not pending:  # no job will give money back
                        self.out_of_budget = True
                        return
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    for future in done:
                        if error := future.exception():
                            failure = failure or error
                            self._purse.pay(estimate, None)
                        else:
                            result = future.result()
                            self._purse.pay(estimate, result.cost)
                            yield result
                    if failure is not None:
                        todo.clear()
                        self._client.stop()
            except BaseException:
                self._client.stop()
                if pending:
                    _log.warning(
                        "waiting for %d requests that are paid for; interrupt again to leave them", len(pending)
                    )
                raise
        if failure is not None:
            raise failure


def carry_out(
    plan: Plan,
    settings: GenerationSettings,
    *,
    track: Callable[[Iterable[Result]], Iterable[Result]] = iter,
) -> Drawn:
    """Ask and buy as planned.

    Args:
        plan: What to do.
        settings: The models to do it with.
        track: Wraps the iteration over the images of the plan, for example to show progress.

    Raises:
        InvalidInputError: The folder is in use, or cannot be used.
        GenerationError: There is no key, and something to be bought.
    """
    with Manifest(plan.folder) as manifest:
        knowledge, error = Knowledge.of(manifest.records), None
        out_of_budget = plan.excluded > 0
        bought = {(record.category, record.index) for record in images(manifest.records, plan.folder)}
        declined = {(record.category, record.index) for record in settled(manifest.records, settings.image_model)}
        plan = replace(plan, places=tuple(place for place in plan.places if place not in bought | declined))
        if plan.places:
            with Client(settings) as client:
                run = Run(plan, settings, manifest, client)
                try:
                    with closing(run.draw(run.analyse())) as results:  # whatever happens in `track`
                        for _ in track(results):
                            pass
                except GenerationError as exc:
                    error = exc
                knowledge, out_of_budget = run.knowledge, run.out_of_budget or out_of_budget
        wanted = set(plan.categories)
        return Drawn(
            categories=plan.categories,
            images=tuple(record for record in images(manifest.records, plan.folder) if record.category in wanted),
            declined=tuple(
                record
                for record in manifest.records
                if isinstance(record, DeclinedRecord) and record.category in wanted
            ),
            knowledge=knowledge,
            spent=spent(manifest.records, plan.categories),
            out_of_budget=out_of_budget,
            error=error,
        )
