"""The service conforms to its OpenAPI description: all checks and phases of schemathesis."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import schemathesis
from hypothesis import strategies as st
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import events, from_schema

from tests.service.support import KEYS, WRITE, Limits, bearer, red
from tests.support import coloured_store, photo
from zsvec.method.predict.fusion import STRATEGIES
from zsvec.service import create_app
from zsvec.service.api.schemas import NAME, TEXT

EXAMPLES = 10
# JSON Schema cannot express 64-bit integers in any JSON, its depth, or names that are invisible or unfit for paths.
UNSAID = [b"metadata must be", b"metadata may have", b"category name must not be empty", b"out of paths"]
UNSAID += [b"version_conflict", b"invalid_cursor", b"merged with itself"]  # nor the state of the store
UNSAID += [b"entity tags in quotes"]  # schemathesis covers headers by values that their pattern does not allow
# Nor can JSON Schema express a picture.
PICTURES = [red(seed) for seed in range(3)]
FORMATS: dict[str, list[Any]] = {
    "binary": PICTURES,
    "byte": [base64.b64encode(picture).decode() for picture in PICTURES],
}


def check(examples: int) -> tuple[set[str], list[str]]:
    """Returns the phases and all failures, for a number of examples of each operation."""
    for name, values in FORMATS.items():
        schemathesis.openapi.format(name, st.sampled_from(values))
    for kind in ("image/*", "application/octet-stream"):
        schemathesis.openapi.media_type(kind, st.sampled_from(PICTURES))
    options = {"max-examples": examples, "deterministic": True, "database": "none"}
    config = SchemathesisConfig.from_dict({"headers": bearer(WRITE), "seed": 1, "generation": options})
    with coloured_store(3) as classifier:
        for seed in range(4):
            classifier.keep(photo(seed))
        app = create_app(classifier, keys=KEYS)
        described = schemathesis.openapi.from_asgi("/v1/openapi.json", app=app, config=config, headers=bearer(WRITE))
        phases, failures = set(), []
        for event in from_schema(described).execute():
            if isinstance(event, events.PhaseFinished):
                phases.add(event.phase.name.name)
            elif isinstance(event, events.ScenarioFinished):
                failures.extend(_failures(event.recorder))
            elif isinstance(event, events.NonFatalError | events.FatalError | events.Interrupted):
                failures.append(str(vars(event)))
    return phases, failures


def _failures(recorder: Any) -> Iterator[str]:
    for identity, checks in recorder.checks.items():
        case = recorder.cases[identity].value
        for one in checks:
            if one.failure_info is None:
                continue
            answer = recorder.interactions[identity].response
            said = answer.content[:300] if answer else b""
            # Values of a form are texts, so none has a wrong type.
            is_of_a_form = one.name == "negative_data_rejection" and case.media_type == "multipart/form-data"
            is_unsaid = one.name == "positive_data_acceptance" and any(words in said for words in UNSAID)
            if not is_of_a_form and not is_unsaid:
                sample = one.failure_info.code_sample
                yield f"{one.name}: {one.failure_info.failure}\n{said!r}\n{sample[:1000]} … {sample[-200:]}"


def test_every_answer_is_as_described() -> None:
    phases, failures = check(EXAMPLES)
    assert phases >= {"EXAMPLES", "COVERAGE", "FUZZING", "STATEFUL_TESTING"}
    assert not failures, "\n\n".join(failures)


def test_whitespace_is_described_as_it_is_read() -> None:
    """Descriptions are read by regular expressions of ECMA 262, where ``\\s`` is not that of Python."""
    name, text = (jsonschema_rs.validator_for({"type": "string", "pattern": one["pattern"]}) for one in (NAME, TEXT))
    spaces = [chr(code) for code in range(0x11000) if chr(code).isspace()]
    assert {"\x85", "\x1c", "\u3000"} <= set(spaces)
    for space in (*spaces, "\ufeff"):
        assert text.is_valid(space) == bool(space.strip())
        assert text.is_valid(f"{space}a")
        assert name.is_valid(f"{space}a")
        assert name.is_valid(f"a{space}")


def test_examples_are_valid_and_name_existing_strategies() -> None:
    with coloured_store(1) as classifier:
        description = create_app(classifier).openapi()
    examples = list(_examples(description))
    assert examples
    for schema, example in examples:
        jsonschema_rs.validate({**schema, "components": description["components"]}, example)
        named = [found["fusion"] for found in _objects(example) if "fusion" in found]
        assert STRATEGIES.keys() >= set(named)
    assert "loglinear" not in json.dumps(description)


def test_a_key_is_optional_where_none_is_needed() -> None:
    with coloured_store(1) as classifier:
        assert create_app(classifier).openapi()["security"] == [{}, {"key": []}]
        assert create_app(classifier, keys=KEYS).openapi()["security"] == [{"key": []}]


def test_audit_and_info_are_typed() -> None:
    with coloured_store(1) as classifier:
        models = create_app(classifier).openapi()["components"]["schemas"]
    [items] = [models["FindingPage"]["properties"]["items"]["items"]]
    kinds = {models[one["$ref"].rpartition("/")[2]]["properties"]["finding"]["const"] for one in items["oneOf"]}
    assert kinds == {"summary", "label", "duplicates", "outlier", "thin", "confusion"}
    assert items["discriminator"]["propertyName"] == "finding"
    assert items["discriminator"]["mapping"].keys() == kinds
    assert all(model.get("additionalProperties", False) is False for model in models.values() if "Page" in str(model))
    assert models["Info"]["additionalProperties"] is False


def test_each_app_describes_its_own_limit_of_images() -> None:
    with coloured_store(1) as classifier:
        apps = [create_app(classifier, limits=Limits(images=number)) for number in (61, 62)]
    descriptions = [app.openapi() for app in apps]  # all before the first check: they share no part
    for number, description in zip((61, 62), descriptions, strict=True):
        assert {one["maxItems"] for one in _objects(description) if "maxItems" in one} & {61, 62} == {number}


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _objects(one)


def _examples(description: dict[str, Any]) -> Iterator[tuple[dict[str, Any], Any]]:
    for found in _objects(description):
        schema = found.get("schema", found)
        examples = found.get("examples", ())
        if isinstance(examples, list):  # not a property of this name
            yield from ((schema, example) for example in examples)
        if "example" in found:
            yield schema, found["example"]
