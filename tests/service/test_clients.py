"""Clients that public generators make from the OpenAPI description: they build, and their main calls work."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.service.support import red
from tests.service.test_server import ROOT, running
from tests.support import encode, photo

DESCRIPTION = ROOT / "zsvec" / "docs" / "openapi.json"

PYTHON = """
import sys
from pathlib import Path

from made import Client
from made.api.categories import change_category, list_categories, put_category, remove_category, show_category
from made.api.images import classify
from made.api.store import audit, history, info
from made.models import AuditSummary, CategoryChange, CategoryGiven, ClassifyFilesBody, Images, Problem
from made.types import File

client = Client(base_url=sys.argv[1])
name = "red/panda ж"
put = put_category.sync_detailed(name, client=client, body=CategoryGiven(texts=["a mammal"]), if_none_match="*")
assert put.status_code == 201
tag = put.headers["ETag"]
changed = change_category.sync_detailed(name, client=client, body=CategoryChange(texts=["a bear"]), if_match=tag)
assert changed.parsed.texts == ["a bear"]
lost = change_category.sync(name, client=client, body=CategoryChange(texts=["a cat"]), if_match=tag)
assert isinstance(lost, Problem) and lost.error == "version_conflict", lost
assert show_category.sync(name, client=client).texts == ["a bear"]

names, cursor = [], None
while True:
    page = list_categories.sync(client=client, limit=2, **({"cursor": cursor} if cursor else {}))
    names += [one.category for one in page.items]
    cursor = page.next_
    if cursor is None:
        break
assert name in names and len(names) == 4, names

photo = Path(sys.argv[2]).read_bytes()
[prediction] = classify.sync(client=client, body=ClassifyFilesBody(images=[File(photo, "photo.png", "image/png")]))
assert prediction.label == "red", prediction
[broken] = classify.sync(client=client, body=Images(images=["!"]))
assert broken.label is None and broken.error
assert isinstance(audit.sync(client=client).items[0], AuditSummary)
assert history.sync(client=client, category=name).items[0].what == "set"
assert info.sync(client=client).categories == 4
assert remove_category.sync_detailed(name, client=client).status_code == 204
assert show_category.sync(name, client=client).error == "category_not_found"
"""

PYDANTIC = """
import sys

import made

address, *photos = sys.argv[1:]
api = made.ApiClient(made.Configuration(host=address))
categories, images, store = made.CategoriesApi(api), made.ImagesApi(api), made.StoreApi(api)
name = "red/panda ж"


def sent(*images):
    return made.Images(images=[made.CategoryGivenImagesInner(image) for image in images])


def refused(call, *arguments, **options):
    try:
        call(*arguments, **options)
    except made.ApiException as exc:
        return exc.status, made.Problem.from_json(exc.body).error
    raise AssertionError(call)


def every(call, *arguments):
    items, cursor = [], None
    while True:
        page = call(*arguments, limit=2, cursor=cursor)
        items += page.items
        if (cursor := page.next) is None:
            return items


put = categories.put_category_with_http_info(name, made.CategoryGiven(texts=["a mammal"]), if_none_match="*")
assert put.status_code == 201 and put.data.texts == ["a mammal"]
tag = put.headers["etag"]
assert categories.change_category(name, made.CategoryChange(texts=["a bear"]), if_match=tag).texts == ["a bear"]
change = made.CategoryChange(texts=["a cat"])
assert refused(categories.change_category, name, change, if_match=tag) == (412, "version_conflict")
assert categories.show_category(name).texts == ["a bear"]
names = [one.category for one in every(categories.list_categories)]
assert name in names and len(names) == 4, names

[known, broken] = images.classify(sent(photos[3], "!"), top_k=2, explain=True)
assert known.label == "red" and len(known.ranking) == 2 and known.experts["hash:image"].neighbors, known
assert broken.label is None and broken.error

given = made.CategoryGiven(images=sent(*photos[:3]).images)
assert categories.add_references(name, given).references["hash:image"] == 3
first, second, third = [one.hash for one in every(categories.list_references, name) if one.modality == "image"]
assert categories.show_reference(name, first).hash == first
assert categories.show_reference_image(name, first)[:2] == b"\\xff\\xd8"
assert categories.move_reference(name, first, made.ReferenceChange(category="blue")).category == "blue"
categories.remove_reference(name, second)
assert images.correct("bear", sent(photos[2])).category == "bear"  # was the third reference

kept = images.keep_images(sent(*photos[4:]))
assert {one.hash for one in every(images.show_inbox)} == {one.hash for one in kept}
assert images.list_groups() == []
assert images.show_waiting_image(kept[0].hash)[:2] == b"\\xff\\xd8"
assert images.label_images(made.LabelGiven(hashes=[kept[0].hash], category="fox")).category == "fox"
images.dismiss_images(made.Hashes(hashes=[kept[1].hash]))
assert every(images.show_inbox) == []

assert isinstance(store.audit().items[0].actual_instance, made.AuditSummary)
assert "set" in {one.what for one in store.history(category=name).items}
assert store.undo(made.UndoGiven(category="fox")) is not None
assert refused(categories.show_category, "fox") == (404, "category_not_found")
assert store.info().categories == 5
categories.remove_category(name)
assert refused(categories.show_category, name) == (404, "category_not_found")
"""

TYPESCRIPT = """
import { client } from "./made/client.gen";
import * as api from "./made/sdk.gen";

declare const process: { argv: string[] };

function check(condition: unknown, shown: unknown): asserts condition {
  if (!condition) throw new Error(JSON.stringify(shown));
}

async function main(): Promise<void> {
  const [address, photo] = process.argv.slice(2) as [string, string];
  client.setConfig({ baseUrl: address });
  const path = { name: "red/panda ж" };
  const put = await api.putCategory({ path, body: { texts: ["a mammal"] }, headers: { "If-None-Match": "*" } });
  check(put.response?.status === 201, put.error);
  const tag = put.response.headers.get("ETag");
  check(tag, put.response);
  const changed = await api.changeCategory({ path, body: { texts: ["a bear"] }, headers: { "If-Match": tag } });
  check(changed.data?.texts[0] === "a bear", changed.error);
  const lost = await api.changeCategory({ path, body: { texts: ["a cat"] }, headers: { "If-Match": tag } });
  check(lost.error?.error === "version_conflict", lost);

  const names: string[] = [];
  let cursor: string | null | undefined;
  do {
    const page = await api.listCategories({ query: { limit: 2, ...(cursor ? { cursor } : {}) } });
    check(page.data, page.error);
    names.push(...page.data.items.map((one) => one.category));
    cursor = page.data.next;
  } while (cursor);
  check(names.length === 4 && names.includes(path.name), names);

  const found = await api.classify({ body: { images: [photo, `data:image/png;base64,${photo}`, "!"] } });
  check(found.data?.map((one) => one.label).join() === "red,red,", found);
  const findings = await api.audit();
  const summary = findings.data?.items[0];
  check(summary?.finding === "summary" && summary.images > 0, findings);
  const about = await api.info();
  check(about.data?.categories === 4 && about.data.limits.page > 0, about);
  check((await api.removeCategory({ path })).response?.status === 204, path);
  check((await api.showCategory({ path })).error?.error === "category_not_found", path);
}

void main();
"""
COMPILER = {
    "strict": True,
    "target": "es2022",
    "module": "commonjs",
    "lib": ["es2022", "dom", "dom.iterable"],
    "skipLibCheck": True,
    "noEmitOnError": True,
}


def tool(name: str, package: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed: {package}")
    return found


def run(folder: Path, *command: str) -> None:
    environment = {**os.environ, "PYTHONPATH": "", "NO_COLOR": "1"}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, (command, done.stdout[-3000:], done.stderr[-3000:])


def test_a_python_client(tmp_path: Path) -> None:
    generator = tool("openapi-python-client", "pipx install openapi-python-client, whose typer is older")
    (tmp_path / "use.py").write_text(PYTHON)
    (tmp_path / "photo.png").write_bytes(red(77))
    run(tmp_path, generator, "generate", "--path", str(DESCRIPTION), "--output-path", "made", "--meta", "none")
    with running(tmp_path / "store") as (_, port):
        python = str(Path(generator).resolve().with_name("python"))  # which has what the client needs
        run(tmp_path, python, "use.py", f"http://127.0.0.1:{port}", "photo.png")


def test_a_python_client_that_checks_every_answer(tmp_path: Path) -> None:
    generator = tool("openapi-generator-cli", "pip install openapi-generator-cli")
    (tmp_path / "use.py").write_text(PYDANTIC)
    options = ("-g", "python", "--package-name", "made", "-p", "useOneOfDiscriminatorLookup=true")
    run(tmp_path, generator, "generate", "-i", str(DESCRIPTION), "-o", ".", *options)
    photos = [
        base64.b64encode(image).decode() for image in (*map(red, range(80, 84)), *map(encode, map(photo, (1, 2))))
    ]
    with running(tmp_path / "store") as (_, port):
        run(tmp_path, sys.executable, "-W", "error", "use.py", f"http://127.0.0.1:{port}", *photos)


def test_a_typescript_client(tmp_path: Path) -> None:
    package = "npm install @hey-api/openapi-ts typescript@5, and add node_modules/.bin to PATH"
    generator, compiler, node = tool("openapi-ts", package), tool("tsc", package), tool("node", "nodejs.org")
    (tmp_path / "tsconfig.json").write_text(json.dumps({"compilerOptions": COMPILER, "files": ["use.ts"]}))
    (tmp_path / "use.ts").write_text(TYPESCRIPT)
    run(tmp_path, generator, "-i", str(DESCRIPTION), "-o", "made", "-c", "@hey-api/client-fetch")
    run(tmp_path, compiler, "-p", ".")
    with running(tmp_path / "store") as (_, port):
        run(tmp_path, node, "use.js", f"http://127.0.0.1:{port}", base64.b64encode(red(77)).decode())
