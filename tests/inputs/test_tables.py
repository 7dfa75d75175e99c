"""Categories from CSV files, frames and data sets."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

import zsvec
from tests.support import encode, given_images, isolated, photo, two_encoders, write_photos  # noqa: F401
from zsvec.errors import InvalidInputError
from zsvec.inputs import tables
from zsvec.inputs.categories import CategoryInput
from zsvec.inputs.tables import from_csv, from_dataset, from_frame


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """``photos`` with six pictures."""
    write_photos(tmp_path / "data" / "photos", range(6))
    return tmp_path / "data"


def by_label(categories: Sequence[CategoryInput]) -> dict[str, list[str]]:
    return {category.name: [Path(str(image)).name for image in given_images(category)] for category in categories}


def written(folder: Path, content: str | bytes) -> Path:
    file = folder / "labels.csv"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def told(
    read: Callable[..., list[CategoryInput]], *given: Any, **options: Any
) -> tuple[dict[str, list[str]], list[str]]:
    """Images by label, and the errors of rows that are left out, without the name of the table."""
    reasons: list[str] = []
    found = read(*given, on_error=lambda error: reasons.append(str(error).partition(", ")[2]), **options)
    return by_label(found), reasons


# ---- CSV


@pytest.mark.parametrize(
    "content",
    [
        "path,label\nphotos/0.png,cat\nphotos/1.png,dog\nphotos/2.png,cat\n",
        "path,label\r\nphotos/0.png,cat\r\nphotos/1.png,dog\r\nphotos/2.png,cat",
        "label;path\ncat;photos/0.png\n\ndog;photos/1.png\n cat ;photos/2.png\n",
        "id\tpath\tlabel\n7\tphotos/0.png\tcat\n8\tphotos/1.png\tdog\n9\tphotos/2.png\tcat\n",
        "path|label\nphotos/0.png|cat\nphotos/1.png|dog\nphotos/2.png|cat\n",
        '\ufeff"path","label"\n"photos/0.png","cat"\nphotos/1.png,"dog"\n"photos/2.png",cat\n',
        "path, label\nphotos/0.png,cat\nphotos/1.png,dog\nphotos/./2.png,cat\n",
        "path,label\nphotos\\0.png,cat\n.\\photos\\1.png,dog\n.\\photos/2.png,cat\n",
        '"size, px","a ""b""; c",path,"label"\n"1,2",x,photos/0.png,cat\n3,,photos/1.png,dog\n4,,photos/2.png,cat\n',
    ],
    ids=[
        *("plain", "lines of Windows", "semicolons", "tabs", "bars", "byte order mark, quotes", "space"),
        *("paths of Windows", "quoted columns"),
    ],
)
def test_csv(folder: Path, content: str) -> None:
    found = from_csv(written(folder, content))
    assert by_label(found) == {"cat": ["0.png", "2.png"], "dog": ["1.png"]}
    assert all(Path(str(image)).is_file() for category in found for image in given_images(category))


def test_csv_of_other_columns_and_of_another_folder(folder: Path, tmp_path: Path) -> None:
    file = written(tmp_path, "class,file\ncat,0.png\n")
    assert by_label(from_csv(file, folder / "photos", path="file", label="class")) == {"cat": ["0.png"]}
    quoted = written(tmp_path, '"kind, or ""class""","file; path"\ncat,0.png\n')
    found = from_csv(quoted, folder / "photos", path="file; path", label='kind, or "class"')
    assert by_label(found) == {"cat": ["0.png"]}
    absolute = written(tmp_path, f"path,label\n{folder / 'photos' / '0.png'},cat\n")
    assert by_label(from_csv(absolute, folder)) == {"cat": ["0.png"]}


PARENTS = "path,label,parent\nphotos/0.png,cat,animal>pet\nphotos/1.png,dog,\nphotos/2.png,cat,\n"


def test_a_column_has_the_parents(folder: Path) -> None:
    def parents(**options: Any) -> dict[str, str | None]:
        return {category.name: category.parent for category in from_csv(file, **options)}

    file = written(folder, PARENTS)
    assert parents() == {"cat": "animal > pet", "dog": None}
    file = written(folder, PARENTS.replace("parent", "kind"))
    assert parents() == {"cat": None, "dog": None}
    assert parents(parent="kind") == {"cat": "animal > pet", "dog": None}
    with pytest.raises(InvalidInputError):
        parents(parent="group")


@pytest.mark.parametrize("parent", ["plant", "cat", "a > > b", " > ".join("x" * 33)])
def test_a_row_with_another_or_an_unusable_parent_is_left_out(folder: Path, parent: str) -> None:
    said: list[object] = []
    file = written(folder, f"{PARENTS}photos/1.png,cat,{parent}\n")
    found = from_csv(file, on_error=said.append)
    assert (by_label(found), len(said)) == ({"cat": ["0.png", "2.png"], "dog": ["1.png"]}, 1)
    with pytest.raises(InvalidInputError):
        from_csv(file)


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_a_frame_has_parents(library: str) -> None:
    frames = pytest.importorskip(library, reason=f"pip install {library}")
    rows = {"path": ["a.png", "b.png", "c.png"], "label": ["cat", "cat", "dog"], "parent": ["animal", None, None]}
    assert {one.name: one.parent for one in from_frame(frames.DataFrame(rows))} == {"cat": "animal", "dog": None}
    other = {"path": ["a.png"], "label": ["cat"], "kind": ["animal"]}
    assert [one.parent for one in from_frame(frames.DataFrame(other), parent="kind")] == ["animal"]
    with pytest.raises(InvalidInputError):
        from_frame(frames.DataFrame(other), parent="group")


def test_a_csv_is_added_and_recognised(folder: Path) -> None:
    file = written(
        folder,
        "path,label\nphotos/0.png,cat\nphotos/0.png,cat\nphotos/1.png,cat\nphotos/1.png,dog\nphotos/2.png,dog\n",
    )
    encoders = two_encoders()
    with zsvec.open(":memory:", encoders=encoders) as clf:
        first = clf.add_categories(from_csv(file))
        assert [max(category.references.values()) for category in first] == [2, 2]
        embedded = [encoder.images_encoded for encoder in encoders]
        assert clf.add_categories(from_csv(file)) == first
        assert [encoder.images_encoded for encoder in encoders] == embedded


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("../secret.png,cat", "leads out of"),
        ("photos/../../secret.png,cat", "leads out of"),
        ("{root}/secret.png,cat", "leads out of"),
        ("photos/link.png,cat", "leads out of"),
        ("linked/secret.png,cat", "leads out of"),
        ("..\\secret.png,cat", "leads out of"),
        ("photos\\..\\..\\secret.png,cat", "leads out of"),
        ("linked\\secret.png,cat", "leads out of"),
        ("\\\\server\\share\\0.png,cat", "leads out of"),
        ("C:\\photos\\0.png,cat", "there is no"),
        ("photos/none.png,cat", "there is no"),
        (f"{'x' * 3000}.png,cat", "there is no"),
        (f"{'x' * 5000}.png,cat", "at most 4,096 characters. Got 5,004"),
        ("photos/0.png\0,cat", "cannot be a path"),
        (",cat", "the path is empty"),
        ("https://example.org/0.png,cat", "URLs are not fetched"),
        ("photos/0.png,", "a category name must not be empty"),
        ("photos/0.png", "1 columns where the first line has 2"),
        ("photos/0.png,cat,domestic", "3 columns where the first line has 2"),
    ],
    ids=lambda value: value[:30],
)
def test_an_invalid_row_is_reported_with_its_line_or_raised(
    folder: Path, tmp_path: Path, row: str, reason: str
) -> None:
    write_photos(tmp_path, [0])
    (tmp_path / "0.png").rename(tmp_path / "secret.png")
    (folder / "photos" / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "linked").symlink_to(tmp_path)
    file = written(folder, f"path,label\nphotos/1.png,dog\n{row.format(root=tmp_path)}\nphotos/2.png,dog\n")
    found, (said,) = told(from_csv, file)
    assert found == {"dog": ["1.png", "2.png"]}
    assert said.startswith("line 3: ")
    assert reason in said
    with pytest.raises(InvalidInputError, match=r"labels\.csv, line 3: "):
        from_csv(file)


@pytest.mark.skipif(sys.platform == "win32", reason="a backslash separates folders")
def test_a_name_with_a_backslash_comes_before_a_path_of_windows(folder: Path) -> None:
    (folder / "photos" / "0.png").rename(folder / r"photos\0.png")
    (folder / "photos" / "1.png").rename(folder / "photos" / "0.png")
    assert by_label(from_csv(written(folder, "path,label\nphotos\\0.png,cat\n"))) == {"cat": [r"photos\0.png"]}


def test_a_link_within_the_folder_is_followed(folder: Path) -> None:
    (folder / "photos" / "link.png").symlink_to(folder / "photos" / "0.png")
    assert by_label(from_csv(written(folder, "path,label\nphotos/link.png,cat\n"))) == {"cat": ["link.png"]}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "the first line of .* must name the columns path and label. Got ''"),
        ("photos/0.png,cat\n", "must name the columns path and label. Got 'photos/0.png,cat'"),
        ("path,label,label\n", "must name the columns"),
        ('"path,label\n', "must name the columns"),
        ('"path"x,label\n', "must name the columns"),
        ("path,label," + "x" * 200_000 + "\n", "must name the columns"),
        ("path,label\n", "has no image with a label"),
        (b"path,label\nphotos/0.png,caf\xe9\n", r"is not UTF-8: .*0xe9.*save it so"),
        ('path,label\n"photos/0.png,cat\n', "is no CSV after line"),
        ('path,label\n"a"b,cat\n', "is no CSV after line 2"),
        ("path,label\n" + "x" * 2**21, "it has a line of 1,048,576 characters"),
        ("x" * 2**21, "it has a line of 1,048,576 characters"),
        ("path,label\n" + "x" * 200_000 + ",cat\n", "field larger than field limit"),
    ],
    ids=range(13),
)
def test_a_file_that_is_no_table(folder: Path, content: str | bytes, reason: str) -> None:
    with pytest.raises(InvalidInputError, match=reason):
        from_csv(written(folder, content), on_error=print)


def test_files_that_cannot_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidInputError, match="is no file"):
        from_csv(folder)
    with pytest.raises(InvalidInputError, match=r"missing\.csv is no file"):
        from_csv(folder / "missing.csv")
    file = written(folder, "path,label\nphotos/0.png,cat\n")
    with pytest.raises(InvalidInputError, match=r"the folder of images .*nowhere is no folder"):
        from_csv(file, folder / "nowhere")
    monkeypatch.setattr(tables, "LARGEST_FILE", 10)
    with pytest.raises(InvalidInputError, match="has 28 bytes, more than 10: divide it"):
        from_csv(file)


def test_an_error_of_the_caller_is_the_callers(folder: Path) -> None:
    def full(error: InvalidInputError) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        from_csv(written(folder, "path,label\nphotos/none.png,cat\n"), on_error=full)


# ---- frames

ROWS = {
    "path": ["a.png", "b.png", None, "", "c.png", "d.png"],
    "label": ["cat", "dog", "cat", "cat", None, "cat"],
}
LEFT_OUT = [
    "row 2: a path must be text that is not empty. Got",
    "row 3: a path must be text that is not empty. Got ''",
    "row 4: a category name must be a str. Got",
]


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_frames(library: str) -> None:
    frames = pytest.importorskip(library, reason=f"pip install {library}")
    found, reasons = told(from_frame, frames.DataFrame(ROWS))
    assert found == {"cat": ["a.png", "d.png"], "dog": ["b.png"]}
    assert len(reasons) == 3
    assert all(said.startswith(expected) for said, expected in zip(reasons, LEFT_OUT, strict=True))
    with pytest.raises(InvalidInputError, match="the frame, row 2: a path must be text"):
        from_frame(frames.DataFrame(ROWS))
    other = frames.DataFrame({"file": ["../a.png"], "class": ["cat"], "more": [1]})
    (category,) = from_frame(other, path="file", label="class")
    assert given_images(category) == ["../a.png"]  # a frame is the caller's: its paths are taken as they are
    with pytest.raises(InvalidInputError, match=r"one column 'path' and one 'label'.* Got \['file', 'class', 'more'\]"):
        from_frame(other)
    with pytest.raises(InvalidInputError, match="row 0: a category name must be a str"):
        from_frame(frames.DataFrame({"path": ["a.png"], "label": [3]}))


def test_frames_of_columns_with_kinds() -> None:
    pandas = pytest.importorskip("pandas", reason="pip install pandas")
    frame = pandas.DataFrame({"path": ["a.png", "b.png"], "label": ["cat", "dog"]}, index=[7, 7])
    assert by_label(from_frame(frame.astype({"label": "category"}))) == {"cat": ["a.png"], "dog": ["b.png"]}
    assert by_label(from_frame(frame.assign(path=[Path("a.png"), Path("b.png")])[:1])) == {"cat": ["a.png"]}
    frame.columns = ["path", "path"]
    with pytest.raises(InvalidInputError, match="a frame needs one column 'path'"):
        from_frame(frame, label="path")


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_frames_with_lists_of_labels(library: str) -> None:
    frames = pytest.importorskip(library, reason=f"pip install {library}")
    rows = {"path": ["a.png", "b.png", "c.png"], "label": [["cat", "dog"], ["dog"], []]}
    assert by_label(from_frame(frames.DataFrame(rows))) == {"cat": ["a.png"], "dog": ["a.png", "b.png"]}
    with pytest.raises(InvalidInputError, match="row 0: a category name"):
        from_frame(frames.DataFrame({"path": ["a.png"], "label": [["cat", ""]]}))


def test_a_value_that_is_no_frame() -> None:
    polars = pytest.importorskip("polars", reason="pip install polars")
    with pytest.raises(InvalidInputError, match="LazyFrame is lazy: give its collect"):
        from_frame(polars.LazyFrame(ROWS))
    for given in (None, 5, [("a.png", "cat")], {"path": ["a.png"], "label": ["cat"]}):
        with pytest.raises(InvalidInputError, match="a frame must be one of pandas or polars"):
            from_frame(given)


# ---- data sets


def test_an_image_folder_of_torchvision(folder: Path) -> None:
    for name, seeds in (("cat", (0, 1)), ("dog", (2,))):
        write_photos(folder / "sorted" / name, seeds)
    datasets = pytest.importorskip("torchvision.datasets", reason="pip install torchvision")
    dataset = datasets.ImageFolder(str(folder / "sorted"), transform=lambda image: 1 / 0)
    found = from_dataset(dataset)
    assert by_label(found) == {"cat": ["0.png", "1.png"], "dog": ["2.png"]}
    with zsvec.open(":memory:", encoders=two_encoders()) as clf:
        assert [max(category.references.values()) for category in clf.add_categories(found)] == [2, 1]


@dataclass(frozen=True)
class Image:
    """Named like the feature of `datasets`."""

    decode: bool = True


@dataclass(frozen=True)
class ClassLabel:
    """Named like the feature of `datasets`."""

    names: Sequence[str]


@dataclass(frozen=True)
class Elements:
    """As the feature `Sequence`, or `List`, of `datasets`."""

    feature: Any


class Dataset:
    """The used part of a Hugging Face data set. Notes the rows that are read; decoding fails."""

    def __init__(self, columns: dict[str, list[Any]], features: dict[str, Any], read: list[int] | None = None) -> None:
        self.columns, self.features = columns, features
        self.read = [] if read is None else read

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, key: str | int) -> Any:
        if isinstance(key, str):
            return self.columns[key]
        assert not any(feature == Image() for feature in self.features.values())
        self.read.append(key)
        return {name: values[key] for name, values in self.columns.items()}

    def with_format(self, format_name: None) -> Dataset:
        return Dataset(self.columns, self.features, self.read)

    def select_columns(self, names: list[str]) -> Dataset:
        return Dataset(
            {name: self.columns[name] for name in names}, {name: self.features[name] for name in names}, self.read
        )

    def cast_column(self, name: str, feature: Any) -> Dataset:
        return Dataset(self.columns, {**self.features, name: feature}, self.read)


def hugging_face(path: str) -> Dataset:
    contents = [{"bytes": encode(photo(seed)), "path": f"{seed}.png" if seed else None} for seed in range(3)]
    pictures = [*contents, {"bytes": None, "path": path}, None, contents[0]]
    columns: dict[str, list[Any]] = {"picture": pictures, "animal": [0, 1, 0, 1, 0, -1]}
    columns |= {"place": [0] * 6, "text": [""] * 6}
    features = {"picture": Image(), "animal": ClassLabel(["cat", "dog"]), "place": ClassLabel(["zoo"]), "text": str}
    return Dataset(columns, features)


def test_a_data_set_of_hugging_face(folder: Path) -> None:
    dataset = hugging_face(str(folder / "photos" / "5.png"))
    reasons: list[str] = []
    found = from_dataset(dataset, label="animal", on_error=lambda error: reasons.append(str(error)))
    assert reasons == ["the data set, row 5: it has no label. Got -1"]
    assert dataset.read == []  # no image before its category is built
    unreadable: list[str] = []
    with zsvec.open(":memory:", encoders=two_encoders()) as clf:
        categories = clf.add_categories(found, on_error=lambda source, error: unreadable.append(f"{source}: {error}"))
        assert [(category.name, max(category.references.values())) for category in categories] == [
            ("cat", 2),
            ("dog", 2),
        ]
        images = [one for one in clf.references.of(categories[0].name) if one.modality == "image"]
        assert sorted(one.source for one in images) == ["2.png", "row 0"]
        assert clf.classify(encode(photo(0))).distance == pytest.approx(0, abs=1e-6)
    (empty,) = unreadable
    assert "it is empty (0 bytes)" in empty
    assert [given_images(category) for category in found] == [given_images(category) for category in found]


def test_a_data_set_with_several_labels_an_image(folder: Path) -> None:
    pictures = [{"bytes": encode(photo(seed)), "path": f"{seed}.png"} for seed in range(5)]
    labels = [[0, 1], [1], [], None, [0, 2]]
    features = {"picture": Image(), "animals": Elements(ClassLabel(["cat", "dog"])), "views": Elements(Image())}
    dataset = Dataset({"picture": pictures, "animals": labels, "views": [[]] * 5}, features)
    reasons: list[str] = []
    found = from_dataset(dataset, on_error=lambda error: reasons.append(str(error)))
    assert {category.name: [cast("Any", image).source for image in given_images(category)] for category in found} == {
        "cat": ["0.png"],
        "dog": ["0.png", "1.png"],
    }
    assert [reason.split(":")[0] for reason in reasons] == [f"the data set, row {number}" for number in (2, 3, 4)]
    with zsvec.open(":memory:", encoders=two_encoders(), labels="many") as clf:
        clf.add_categories(found)
        assert clf.references.holders([zsvec.content_hash(encode(photo(0)))]) == {
            zsvec.content_hash(encode(photo(0))): ("cat", "dog")
        }


def test_a_data_set_with_ambiguous_columns(folder: Path) -> None:
    dataset = hugging_face("")
    with pytest.raises(InvalidInputError, match=r"one column of type ClassLabel; .*Got label=None"):
        from_dataset(dataset)
    with pytest.raises(InvalidInputError, match="Got image='text' and picture of picture, animal, place, text"):
        from_dataset(dataset, image="text", label="animal")
    with pytest.raises(InvalidInputError, match="the data set, row 5: it has no label"):
        from_dataset(dataset, label="animal")


def test_a_value_that_is_no_data_set() -> None:
    for given in (None, 5, {"train": 1}, [("a.png", 0)]):
        with pytest.raises(InvalidInputError, match="a data set must be a torchvision ImageFolder or a Hugging Face"):
            from_dataset(given)


def test_a_data_set_of_the_real_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets, arrow, parquet = (
        pytest.importorskip(name, reason="pip install datasets") for name in ("datasets", "pyarrow", "pyarrow.parquet")
    )
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    contents = [{"bytes": encode(photo(seed)), "path": None} for seed in range(3)]
    parquet.write_table(arrow.table({"image": contents, "label": [0, 1, 0]}), tmp_path / "a.parquet")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    datasets.disable_progress_bars()
    splits = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "a.parquet"), features=features, cache_dir=str(tmp_path / "cache")
    )
    for dataset in (splits["train"], splits["train"].with_format("numpy")):
        found = from_dataset(dataset)
        images = {category.name: [cast("Any", image).image for image in given_images(category)] for category in found}
        assert images == {"cat": [encode(photo(0)), encode(photo(2))], "dog": [encode(photo(1))]}
    several = datasets.Features({"image": datasets.Image(), "label": datasets.Sequence(features["label"])})
    rows = {"image": contents, "label": [[0, 1], [1], [0]]}
    found = from_dataset(datasets.Dataset.from_dict(rows, features=several))
    images = {category.name: [cast("Any", image).image for image in given_images(category)] for category in found}
    assert images == {"cat": [encode(photo(0)), encode(photo(2))], "dog": [encode(photo(0)), encode(photo(1))]}
    for given in (splits, splits["train"].to_iterable_dataset()):
        with pytest.raises(InvalidInputError, match="of a DatasetDict one split"):
            from_dataset(given)
