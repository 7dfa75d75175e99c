"""Carries out a plan: asks, draws, keeps. Several requests at once, each result durable before the next step.

A run that is killed, or ended by its budget, by an error or by the user, is resumed by running it again:
what is on disk is not bought again. Requests that were on their way when a process was killed are sent
again with the same idempotency key.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, TypeVar

from zsvec.config import GenerationSettings
from zsvec.errors import GenerationError
from zsvec.generation import prompts
from zsvec.generation.client import SPOILED, Client, Declined
from zsvec.generation.features import Asked, Group, Knowledge, analyse
from zsvec.generation.manifest import AnswerRecord, DeclinedRecord, ImageRecord, Manifest, images, settled, spent
from zsvec.generation.plan import ROUNDING, Plan
from zsvec.generation.prices import image_cost, text_cost

_log = logging.getLogger(__name__)

Job = TypeVar("Job")
Done = TypeVar("Done", AnswerRecord, ImageRecord | DeclinedRecord)
Result: TypeAlias = ImageRecord | DeclinedRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """What the folder of a run holds of its categories.

    Attributes:
        categories: Those that were wanted.
        images: All that there are of them, those of earlier runs included.
        declined: Images that the service does not draw.
        knowledge: What was found out about the categories.
        spent: Dollars, as far as it is known, earlier runs included.
        out_of_budget: Whether the budget ended the run before all was bought.
        error: What ended it, if it was that.
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
        settings: With what.
        manifest: Open.
        client: Open.
    """

    def __init__(self, plan: Plan, settings: GenerationSettings, manifest: Manifest, client: Client) -> None:
        self._plan = plan
        self._settings = settings
        self._manifest = manifest
        self._client = client
        self._purse = _Purse(plan.budget.dollars, spent(manifest.records, plan.categories))
        self.knowledge = Knowledge.of(manifest.records)
        self.out_of_budget = False

    def analyse(self) -> list[Group]:
        """Find out what the prompts of the images need; the groups that have been compared."""
        plan = self._plan
        names = sorted({name for name, _ in plan.places})
        # Those that have all their images already are still what the rest are confused with.
        others = {**dict.fromkeys(plan.categories, ""), **plan.others}
        try:
            return analyse(self.knowledge, names, others, plan.measured, self._ask)
        except _OutOfBudgetError:
            self.out_of_budget = True
            return []

    def draw(self, groups: Sequence[Group]) -> Generator[Result, None, None]:
        """Buy the images of the plan, and yield each as it is there.

        Raises:
            GenerationError: The service cannot do it. What has arrived is kept.
        """
        places = () if self.out_of_budget else self._plan.places
        jobs = [(name, index, self._prompt(name, index, groups)) for name, index in places]
        yield from self._at_once(jobs, self._buy, image_cost(None, self._settings))

    def _prompt(self, name: str, index: int, groups: Sequence[Group]) -> str:
        words = " ".join(name.replace("_", " ").split())
        look = self.knowledge.look(name, groups)
        return prompts.draw(
            words,
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
            # In the order of the file, so that a run that resumes this one makes the same prompts of them.
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
        )  # it was deleted so many times, and shall be another one
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
        """Of an image that did not come: responses that could not be used were paid for all the same."""
        if declined.usage.output:
            return image_cost(declined.usage, self._settings)
        each = image_cost(None, self._settings)
        return each and each * SPOILED if declined.code == "unusable" else 0.0

    def _key(self, *parts: Any) -> str:
        """The same request of the same folder has the same key, in each run."""
        return hashlib.sha256(json.dumps([self._manifest.id, *parts]).encode()).hexdigest()[:32]

    def _at_once(self, jobs: Iterable[Job], work: Callable[[Job], Done], estimate: float | None) -> Iterator[Done]:
        """Do jobs in threads, as many at once as settings and budget allow, and yield what is done.

        After an error, or an interruption, nothing more is begun, and what is on its way is waited for: it is
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
                    if not pending:  # nor will there be more money
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


class _Purse:
    """Keeps to a limit in dollars; what has been begun is counted by its estimate until its cost is known."""

    def __init__(self, limit: float | None, spent: float) -> None:
        self._limit = limit
        self._left = math.inf if limit is None else limit - spent

    def reserve(self, estimate: float | None) -> bool:
        """Set money aside, if there is enough."""
        if self._limit is None:
            return True
        if estimate is None or estimate > self._left + ROUNDING:
            return False
        self._left -= estimate
        return True

    def pay(self, estimate: float | None, cost: float | None) -> None:
        """Replace what was set aside by what it cost."""
        self._left += (estimate or 0.0) - (cost or 0.0)


def carry_out(
    plan: Plan,
    settings: GenerationSettings,
    *,
    track: Callable[[Iterable[Result]], Iterable[Result]] = iter,
) -> Drawn:
    """Ask and buy what is planned.

    Args:
        plan: What to do.
        settings: With what.
        track: Iterates the results, one for each image of the plan; to show progress.

    Raises:
        InvalidInputError: The folder is in use, or cannot be used.
        GenerationError: There is no key, and something to be bought.
    """
    with Manifest(plan.folder) as manifest:
        knowledge, error = Knowledge.of(manifest.records), None
        out_of_budget = plan.excluded > 0
        bought = {(record.category, record.index) for record in images(manifest.records, plan.folder)}
        declined = {(of.category, of.index) for of in settled(manifest.records, settings.image_model)}
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
