"""Points of a collection that zsvec did not make are compared as references of the store, and never written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
from qdrant_client import models

from tests.search.support import answer, assert_answers, assert_same, fill, queries, searcher, truth
from tests.store.material import FINGERPRINTS, references, unit_vector
from tests.store.support import ClientDeployment
from zsvec.errors import EncoderMismatchError, InvalidInputError, StoreUnavailableError
from zsvec.search.searcher import Searcher
from zsvec.store import Reference, Store, Write
from zsvec.types import Attachment

pytestmark = pytest.mark.filterwarnings("ignore:Payload indexes have no effect:UserWarning")

DIM = FINGERPRINTS["clip"].dim
OWN: Mapping[str, Sequence[Reference]] = {
    "lynx": references(["a cat with tufts"], ["lynx 1", "lynx 2"]),
    "wolf": references(images=["wolf 1", "wolf 2", "wolf 3"]),
}
THEIRS = {1: "lynx", 2: "lynx", 3: "otter", 4: "otter", 5: "otter", 6: "wolf"}

both_ways = pytest.mark.parametrize(
    ("deployment", "way"),
    [(place, way) for place in ("local", "server") for way in ("numpy", "qdrant")],
    indirect=["deployment"],
)
everywhere = pytest.mark.parametrize("deployment", ["local", "server"], indirect=True)


class Shop:
    """A collection of products, which its owner changes."""

    def __init__(self, deployment: ClientDeployment, *, vector: str = "", sparse: bool = False, **params: Any) -> None:
        self.name = f"{deployment.namespace}-products"  # begins as the names of the store do
        self.vector = vector
        self.sparse = {"words": models.SparseVectorParams()} if sparse else None
        self.client = deployment.client
        self.make(**params)

    def make(self, dim: int = DIM, distance: models.Distance = models.Distance.COSINE) -> None:
        space = models.VectorParams(size=dim, distance=distance)
        self.client.create_collection(
            self.name, vectors_config={self.vector: space} if self.vector else space, sparse_vectors_config=self.sparse
        )

    def put(self, labels: Mapping[int, Any], **payload: Any) -> None:
        points = [
            models.PointStruct(id=i, vector=self._named(vector(i)), payload={"about": {"brand": label}, **payload})
            for i, label in labels.items()
        ]
        self.client.upsert(self.name, points, wait=True)

    def drop(self) -> None:
        self.client.delete_collection(self.name)

    def delete(self, *ids: int) -> None:
        self.client.delete(self.name, models.PointIdsList(points=list(ids)), wait=True)

    def relabel(self, label: Any, *ids: int) -> None:
        self.client.set_payload(self.name, {"about": {"brand": label}}, points=list(ids), wait=True)

    def state(self) -> Any:
        info = self.client.get_collection(self.name)
        points, _ = self.client.scroll(self.name, limit=100, with_payload=True, with_vectors=True)
        return info.config.model_dump(), info.payload_schema, [point.model_dump() for point in points]

    def attachment(self, **changes: Any) -> Attachment:
        usual = {"collection": self.name, "expert": "clip:image", "label": "about.brand", "vector": self.vector}
        return Attachment(**{**usual, "id": "1", **changes})

    def _named(self, row: list[float]) -> Any:
        return {self.vector: row} if self.vector else row


def vector(i: int) -> list[float]:
    row: list[float] = unit_vector(DIM, f"product {i}").tolist()
    return row


def product(i: int) -> Reference:
    return Reference("clip", "image", str(i), str(i), unit_vector(DIM, f"product {i}"))


def joined(labels: Mapping[int, str]) -> dict[str, list[Reference]]:
    """The references of our own and of labelled products."""
    state = {name: list(own) for name, own in OWN.items()}
    for i, label in labels.items():
        state.setdefault(label, []).append(product(i))
    return state


@pytest.fixture
def shop(deployment: ClientDeployment) -> Iterator[Shop]:
    made = Shop(deployment)
    made.put(THEIRS)
    yield made
    if deployment.client.collection_exists(made.name):
        made.drop()


@pytest.fixture
def filled(store: Store) -> Store:
    fill(store, OWN)
    return store


@both_ways
def test_points_compete_with_own_references_and_add_to_categories_of_the_same_name(
    filled: Store, shop: Shop, way: str
) -> None:
    filled.attach(shop.attachment())
    assert_answers(searcher(filled, way), joined(THEIRS))


@both_ways
def test_a_store_of_attached_points_alone(store: Store, shop: Shop, way: str) -> None:
    store.attach(shop.attachment())
    state: dict[str, list[Reference]] = {}
    for i, label in THEIRS.items():
        state.setdefault(label, []).append(product(i))
    assert_answers(searcher(store, way), state)


@both_ways
def test_a_few_of_many_points_and_references(filled: Store, shop: Shop, way: str) -> None:
    filled.attach(shop.attachment())
    asked = queries()
    found = searcher(filled, way, limit=3).search(asked, nearest=3)
    everything = searcher(filled, "numpy").search(asked, nearest=3)
    for one, other in zip(found.experts, everything.experts, strict=True):
        assert [[near.hash for near in row] for row in one.nearest] == [
            [near.hash for near in row] for row in other.nearest
        ]


@everywhere
@pytest.mark.parametrize("way", ["numpy", "qdrant"])
def test_a_named_vector_that_some_points_lack(filled: Store, deployment: ClientDeployment, way: str) -> None:
    shop = Shop(deployment, vector="clip")
    shop.put({1: "otter", 2: "otter"})
    shop.client.upsert(
        shop.name, [models.PointStruct(id=3, vector={}, payload={"about": {"brand": "otter"}})], wait=True
    )
    filled.attach(shop.attachment())
    assert_answers(searcher(filled, way), joined({1: "otter", 2: "otter"}))
    shop.drop()


@both_ways
def test_a_zero_vector_and_a_point_without_a_vector_beside_sparse_vectors(
    filled: Store, deployment: ClientDeployment, way: str
) -> None:
    shop = Shop(deployment, sparse=True)
    shop.put({1: "otter", 2: "mink"})
    sparse = models.SparseVector(indices=[1], values=[1.0])
    payload = {"about": {"brand": "otter"}}
    shop.client.upsert(
        shop.name,
        [
            models.PointStruct(id=3, vector={"words": sparse}, payload=payload),
            models.PointStruct(id=4, vector=[0.0] * DIM, payload={"about": {"brand": "nothing"}}),
        ],
        wait=True,
    )
    filled.attach(shop.attachment())
    found = searcher(filled, way).search(queries(), 0)
    assert found.incomplete == ()
    got = {name: values for name, values in answer(found, "max")["clip:image"].items() if name != "nothing"}
    assert_same(
        {"clip:image": got}, {"clip:image": truth(joined({1: "otter", 2: "mink"}), queries(), "max")["clip:image"]}
    )
    shop.drop()


@everywhere
def test_a_copy_of_a_collection_that_cannot_be_read_fails(
    filled: Store, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any, **__: Any) -> Any:
        raise StoreUnavailableError("away")

    monkeypatch.setattr(type(filled._attached._backend.others), "pages", away)
    with pytest.raises(StoreUnavailableError):
        list(filled.points_of(shop.attachment()))
    with pytest.raises(StoreUnavailableError):
        filled.attach(shop.attachment())
    assert filled.attached() == []


@both_ways
def test_changes_are_seen_after_a_refresh(filled: Store, shop: Shop, way: str) -> None:
    filled.attach(shop.attachment())
    search = searcher(filled, way)
    assert_answers(search, joined(THEIRS))
    shop.relabel("lynx", 6)
    shop.relabel("mink", 3)
    shop.delete(1)
    shop.put({7: "wolf"})
    filled.attached()
    assert_answers(search, joined({2: "lynx", 3: "mink", 4: "otter", 5: "otter", 6: "lynx", 7: "wolf"}))
    shop.delete(3, 4, 5)
    filled.attached()
    assert_answers(search, joined({2: "lynx", 6: "lynx", 7: "wolf"}))


@both_ways
def test_own_commits_go_on(filled: Store, shop: Shop, way: str) -> None:
    filled.attach(shop.attachment())
    search = searcher(filled, way)
    assert_answers(search, joined(THEIRS))
    more = references(images=["lynx 3"])
    filled.write([Write(name="lynx", references=more)])  # grows
    state = joined(THEIRS)
    state["lynx"] = [*state["lynx"], *more]
    assert_answers(search, state)
    filled.write([Write(name="lynx", references=more, replace=True)])
    state["lynx"] = [*more, product(1), product(2)]
    assert_answers(search, state)
    filled.remove("lynx")
    state["lynx"] = [product(1), product(2)]
    assert_answers(search, state)


@both_ways
def test_a_dropped_collection_is_named_and_the_rest_answers(filled: Store, shop: Shop, way: str) -> None:
    filled.attach(shop.attachment())
    search = searcher(filled, way)
    assert_answers(search, joined(THEIRS))
    shop.drop()
    (state,) = filled.attached()
    assert (state.points, state.problem is None) == (0, False)
    assert_answers(search, dict(joined({})))
    shop.make()
    shop.put({1: "otter"})
    (state,) = filled.attached()
    assert (state.points, state.problem) == (1, None)
    assert_answers(search, joined({1: "otter"}))


@both_ways
def test_a_collection_that_cannot_be_read_keeps_its_last_state(
    filled: Store, shop: Shop, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled.attach(shop.attachment())
    search = searcher(filled, way)
    assert_answers(search, joined(THEIRS))

    def away(*_: Any) -> Any:
        raise StoreUnavailableError("away")

    with monkeypatch.context() as patched:
        patched.setattr(type(filled._attached._backend.others), "vectors", away)
        (state,) = filled.attached()
        assert (state.points, state.problem) == (len(THEIRS), "away")
        assert search.search(queries(), 0).incomplete == (shop.name,)
        assert_answers(search, joined(THEIRS))
    (state,) = filled.attached()
    assert state.problem is None
    assert search.search(queries(), 0).incomplete == ()


@both_ways
def test_vectors_that_cannot_be_read_delay_and_stop_nothing(
    filled: Store, shop: Shop, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled.attach(shop.attachment())
    others, asked = type(filled._attached._backend.others), Counter[str]()
    pages = others.pages

    def broken(self: Any, collection: str, where: Any, fields: Any, vector: str | None = None) -> Any:
        asked["pages"] += vector is not None
        if vector is not None:
            raise StoreUnavailableError("away")
        return pages(self, collection, where, fields, vector)

    def refused(*_: Any) -> Any:
        asked["query"] += 1
        raise StoreUnavailableError("away")

    search = searcher(filled, way)
    with monkeypatch.context() as patched:
        patched.setattr(others, "pages", broken)
        patched.setattr(others, "query", refused)
        for _ in range(3):
            found = search.search(queries(), 0)
            assert found.incomplete == (shop.name,)
            assert_same(answer(found, "top_mean"), truth(joined({}), queries(), "top_mean"))
        assert asked.total() == 1
    (state,) = filled.attached()
    assert (state.points, state.problem) == (len(THEIRS), None)
    assert_answers(search, joined(THEIRS))


@both_ways
def test_a_collection_made_again_with_another_distance_is_left_out(filled: Store, shop: Shop, way: str) -> None:
    filled.attach(shop.attachment())
    search = searcher(filled, way)
    assert_answers(search, joined(THEIRS))
    shop.drop()
    shop.make(distance=models.Distance.EUCLID)
    shop.put(THEIRS)
    (state,) = filled.attached()
    assert (state.points, state.problem is None) == (0, False)
    assert_answers(search, dict(joined({})))


@both_ways
def test_unusable_vectors_and_points_without_a_label_are_left_out(filled: Store, shop: Shop, way: str) -> None:
    """Points without a label that are nearest to every image hide no others."""
    asked = queries(1)
    near = [
        models.PointStruct(id=100 + i, vector=asked["clip"][0].tolist(), payload={"about": {"brand": label}})
        for i, label in enumerate([None, "", {"a": 1}] * 5)
    ]
    shop.client.upsert(shop.name, near, wait=True)
    filled.attach(shop.attachment())
    (found,) = (one for one in searcher(filled, way, limit=4).search(asked, 9).experts if one.name == "clip:image")
    images = [one for own in joined(THEIRS).values() for one in own if (one.encoder, one.modality) == ("clip", "image")]
    assert found.nearest[0][0].similarity == pytest.approx(
        max(float(one.vector @ asked["clip"][0]) for one in images), abs=1e-5
    )


@both_ways
def test_points_that_vanish_before_they_are_read(filled: Store, shop: Shop, way: str) -> None:
    """Labels and vectors are read one after the other."""
    filled.attach(shop.attachment())
    search = searcher(filled, way)
    shop.delete(3, 6)
    found = search.search(queries(), nearest=9)
    (image,) = (one for one in found.experts if one.name == "clip:image")
    assert found.incomplete == ()
    assert {near.hash for row in image.nearest for near in row} >= {f"{shop.name}#{i}" for i in (1, 2, 4, 5)}
    filled.attached()
    assert_answers(search, joined({1: "lynx", 2: "lynx", 4: "otter", 5: "otter"}))


@everywhere
def test_a_collection_embedded_again_is_read_again(filled: Store, shop: Shop) -> None:
    filled.attach(shop.attachment())
    search = searcher(filled, "numpy")
    before = answer(search.search(queries(), 0), "max")["clip:image"]["otter"]
    points = [
        models.PointStruct(id=i, vector=vector(i + 100), payload={"about": {"brand": label}})
        for i, label in THEIRS.items()
    ]
    shop.client.upsert(shop.name, points, wait=True)
    filled.attached()
    after = answer(search.search(queries(), 0), "max")["clip:image"]["otter"]
    assert after.tolist() != before.tolist()


@everywhere
def test_nothing_is_written_and_another_handle_sees_it(filled: Store, shop: Shop, deployment: ClientDeployment) -> None:
    before = shop.state()
    filled.attach(shop.attachment())
    for way in ("numpy", "qdrant"):
        assert_answers(searcher(deployment.open(), way), joined(THEIRS))
    filled.detach(shop.name)
    assert_answers(searcher(deployment.open(), "numpy"), dict(joined({})))
    assert shop.state() == before


@everywhere
def test_a_running_searcher_follows_attach_and_detach(filled: Store, shop: Shop, deployment: ClientDeployment) -> None:
    other = searcher(deployment.open(), "numpy")
    assert_answers(other, dict(joined({})))
    filled.attach(shop.attachment())
    assert_answers(other, joined(THEIRS))
    filled.detach(shop.name, "clip:image")
    assert_answers(other, dict(joined({})))


@everywhere
def test_labels_that_cannot_be_categories_are_counted(filled: Store, shop: Shop) -> None:
    shop.put({11: ["otter", "mink"], 12: {"a": 1}, 13: "", 14: "a\x1bb", 15: 17, 16: True, 17: " mink "})
    shop.client.upsert(shop.name, [models.PointStruct(id=18, vector=vector(18), payload={})], wait=True)
    filled.attach(shop.attachment())
    (state,) = filled.attached()
    assert state.points == len(THEIRS) + 3
    assert sum(state.left_out.values()) == 5
    assert {category.name for category in filled.all_categories()} == {"lynx", "otter", "wolf", "17", "True", "mink"}
    assert_answers(searcher(filled, "numpy"), joined({**THEIRS, 15: "17", 16: "True", 17: "mink"}))
    assert_answers(searcher(filled, "qdrant"), joined({**THEIRS, 15: "17", 16: "True", 17: "mink"}))


@everywhere
def test_conditions(filled: Store, shop: Shop) -> None:
    shop.put({7: "otter"}, sold=True, size=3, colour="red")
    shop.put({8: "otter"}, sold=True, size=4, colour="red")
    filled.attach(shop.attachment(where={"sold": True, "size": 3, "colour": "red"}))
    assert_answers(searcher(filled, "numpy"), joined({7: "otter"}))
    assert_answers(searcher(filled, "qdrant"), joined({7: "otter"}))


@everywhere
def test_sources_name_the_points(filled: Store, shop: Shop) -> None:
    shop.put({7: "otter"}, file="otter 7.jpg")
    filled.attach(shop.attachment(source="file"))
    found = searcher(filled, "numpy").search({"clip": queries()["clip"]}, nearest=99)
    (image,) = (one for one in found.experts if one.name == "clip:image")
    named = {near.hash: near.source for near in image.nearest[0]}
    assert named[f"{shop.name}#7"] == "otter 7.jpg"
    assert named[f"{shop.name}#1"] == f"{shop.name}#1"


@everywhere
def test_attaching_again_replaces_and_two_experts_stand_side_by_side(filled: Store, shop: Shop) -> None:
    filled.attach(shop.attachment(where={"about.brand": "lynx"}))
    filled.attach(shop.attachment(id="2"))
    with pytest.raises(InvalidInputError):  # no point has it
        filled.attach(shop.attachment(id="4", where={"sold": True}))
    filled.attach(shop.attachment(id="3", expert="clip:text"))
    assert [one.attachment.id for one in filled.attached()] == ["2", "3"]
    state = joined(THEIRS)
    for i, label in THEIRS.items():
        state[label].append(Reference("clip", "text", str(i), str(i), unit_vector(DIM, f"product {i}")))
    assert_answers(searcher(filled, "numpy"), state)
    filled.detach(shop.name)
    assert filled.attached() == []


@everywhere
@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"collection": "nowhere"}, InvalidInputError),
        ({"collection": "a/b"}, InvalidInputError),
        ({"vector": "clip"}, InvalidInputError),
        ({"expert": "sift:image"}, InvalidInputError),
        ({"expert": "clip"}, InvalidInputError),
        ({"label": ""}, InvalidInputError),
        ({"refresh": 0.5}, InvalidInputError),
        ({"refresh": float("nan")}, InvalidInputError),
        ({"where": {"size": 1.5}}, InvalidInputError),
        ({"expert": "dino:image"}, EncoderMismatchError),
    ],
)
def test_refused(filled: Store, shop: Shop, changes: Mapping[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        filled.attach(shop.attachment(**changes))
    assert filled.attached() == []


@everywhere
def test_another_distance_and_own_collections_are_refused(filled: Store, deployment: ClientDeployment) -> None:
    dot = Shop(deployment, distance=models.Distance.DOT)
    with pytest.raises(EncoderMismatchError):
        filled.attach(dot.attachment())
    dot.drop()
    with pytest.raises(InvalidInputError):
        filled.attach(dot.attachment(collection=filled.collection("clip"), label="category"))
    with pytest.raises(InvalidInputError):
        filled.detach("products")
    other = Store(deployment.backend(), f"{deployment.namespace}-2")
    other.bind(FINGERPRINTS)
    other.write([Write(name="lynx", references=OWN["lynx"])])
    with pytest.raises(InvalidInputError):
        filled.attach(dot.attachment(collection=other.collection("clip"), label="category"))


@pytest.mark.parametrize("deployment", ["edge"], indirect=True)
def test_a_folder_has_no_collections_of_others(filled: Store) -> None:
    with pytest.raises(InvalidInputError):
        filled.attach(Attachment(collection="products", expert="clip:image", label="brand"))
    assert filled.attached() == []


@everywhere
def test_a_forged_record_stops_nobody(filled: Store, shop: Shop) -> None:
    good = {
        "collection": shop.name,
        "expert": "clip:image",
        "label": "about.brand",
        "vector": "",
        "where": {},
        "source": None,
        "refresh": 60,
        "compared": 0,
        "id": "1",
    }
    forged: list[Any] = [
        17,
        {},
        {**good, "more": 1},
        *({**good, name: 1.5} for name in good if name != "refresh"),
        {**good, "refresh": 0},
        {**good, "where": {"a": []}},
        {**good, "collection": "../../other"},
        {**good, "collection": "nowhere"},
        {**good, "id": "6", "label": "about"},
        {**good, "id": "2", "collection": "nowhere"},
        {**good, "id": "3", "expert": "dino:image"},  # another dimension
        {**good, "id": "4", "expert": "nobody:image"},
        {**good, "id": "5", "vector": "nothing"},
    ]
    for attachments in ([good, *forged], "text", {"a": 1}):
        filled._catalog.set_in_store(attachments=attachments)
        state = joined(THEIRS) if isinstance(attachments, list) else dict(joined({}))
        found = searcher(filled, "numpy").search(queries(), nearest=3)
        assert_same(
            {name: values for name, values in answer(found, "max").items() if name.startswith("clip")},
            {name: values for name, values in truth(state, queries(), "max").items() if name.startswith("clip")},
        )


@everywhere
def test_the_next_process_takes_cached_vectors(
    deployment: ClientDeployment, filled: Store, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zsvec.search.searcher.WORTH", 1)
    filled.attach(shop.attachment())
    first = Searcher(filled, kind="memory", budget=0, neighbors=9, norms=False, cached=True)
    expected = answer(first.search(queries(), 3), "max")
    first.close()
    again = deployment.open()
    read: list[str] = []
    whole = type(again._attached).pages

    def watched(self: Any, encoder: str, write_ids: Any, **how: Any) -> Any:
        read.extend(write_ids)
        return whole(self, encoder, write_ids, **how)

    monkeypatch.setattr(type(again._attached), "pages", watched)
    second = Searcher(again, kind="memory", budget=0, neighbors=9, norms=False, cached=True)
    assert_same(answer(second.search(queries(), 3), "max"), expected)
    assert read == []
    shop.relabel("lynx", 6)
    again.attached()
    assert_answers(second, joined({**THEIRS, 6: "lynx"}))
    assert read
