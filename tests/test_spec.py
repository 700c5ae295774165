import dataclasses
import json

import pytest

from autoreg.errors import ModelError
from autoreg.spec import MapClass, ModelSpec

SPEC = ModelSpec(
    bands=("red", "nir"),
    dtype="uint16",
    classes=(MapClass(0, "Gewässer", "#0000ff", (0, 2)), MapClass(2, "none", "#000000"), MapClass(10, "x", "#ff0000", (1,))),
    stride=4,
    receptive_field_px=61,
    crop_px=128,
    mean=(100.5, 2.0),
    std=(3.0, 0.5),
    precision="fp16",
    checkpoint_digest="ab" * 32,
    agreement=0.9999,
    autoreg_version="0.1.0",
)


ROW = {"label": 0, "name": "a", "colour": "#123abc", "clusters": [0]}
TWO = ROW | {"clusters": [0, 1]}


def test_labels_and_colours_of_the_clusters() -> None:
    assert SPEC.clusters == 3
    assert SPEC.cluster_labels == (0, 10, 0)
    assert [item.rgb for item in SPEC.classes] == [(0, 0, 255), (0, 0, 0), (255, 0, 0)]


def test_only_raw_bytes_may_be_shown_as_bytes_and_then_nodata_is_one() -> None:
    assert not SPEC.takes_uint8
    assert SPEC.fill == SPEC.mean
    spec = dataclasses.replace(SPEC, dtype="uint8", mean=(100.6, -3.0))
    assert spec.takes_uint8
    assert spec.fill == (101.0, 0.0)
    assert dataclasses.replace(spec, mean=(100.4, 300.0)).fill == (100.0, 255.0)
    scene = dataclasses.replace(spec, normalisation="scene")
    assert not scene.takes_uint8
    assert scene.fill == (100.6, -3.0)


@pytest.mark.parametrize("receptive_field_px", [61, None])
def test_round_trip(receptive_field_px: int | None) -> None:
    spec = dataclasses.replace(SPEC, receptive_field_px=receptive_field_px)
    assert ModelSpec.from_json(spec.to_json()) == spec


def test_a_missing_receptive_field_is_not_an_unbounded_one() -> None:
    values = dataclasses.asdict(SPEC)
    del values["receptive_field_px"]
    with pytest.raises(ModelError, match="KeyError"):
        ModelSpec.from_json(json.dumps(values))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"bands": []}, "0 bands"),
        ({"bands": "red"}, "not a list"),
        ({"bands": ["red", 3]}, "3 is not of type str"),
        ({"classes": ["a"]}, "'a' is not an object"),
        ({"classes": []}, "0 clusters"),
        ({"classes": [ROW]}, "1 clusters, expected 2 to 255"),
        (
            {"classes": [ROW | {"clusters": [0, 0]}]},
            "cluster 0 is in 2 of its classes, expected each of the clusters 0 to 1",
        ),
        ({"classes": [ROW | {"clusters": [0, 7]}]}, "cluster 1 is in none of its classes"),
        ({"classes": [ROW | {"clusters": [0, 1, 7]}]}, "cluster 2 is in none"),
        ({"classes": [ROW | {"clusters": [0, 1, -1]}]}, "lists cluster -1"),
        ({"classes": [TWO | {"label": 255}]}, "the label of class 'a' is 255, expected 0 to 254"),
        ({"classes": [TWO | {"name": " "}]}, "the name of class 0 is ' ', expected a printable line"),
        ({"classes": [TWO | {"name": "a\x00b"}]}, "expected a printable line"),
        ({"classes": [TWO | {"name": "\ud800"}]}, "expected a printable line"),
        ({"classes": [TWO | {"name": "a" * 201}]}, "1 to 200 long"),
        ({"classes": [TWO | {"colour": "red"}]}, "the colour of class 0 is 'red', expected #rrggbb"),
        ({"classes": [TWO, ROW | {"clusters": [2]}]}, "2 of its classes have the label 0"),
        ({"classes": [TWO, ROW | {"label": 1, "clusters": [2]}]}, "2 of its classes have the name 'a'"),
        ({"stride": True}, "True is not of type int"),
        ({"stride": 0}, "stride is 0"),
        ({"receptive_field_px": 10**9}, "receptive field is 1000000000 px"),
        ({"receptive_field_px": 60}, "receptive field is 60 px"),
        ({"receptive_field_px": False}, "False is not of type int"),
        ({"receptive_field_px": "61"}, "'61' is not of type int"),
        ({"crop_px": None}, "None is not of type int"),
        ({"crop_px": 8}, "crops are 8 px"),
        ({"crop_px": 130}, "expected 16 to 4096, a multiple of the stride, 4"),
        ({"std": [1.0, 0.0]}, "not positive"),
        ({"mean": [1.0]}, "1 means"),
        ({"mean": [1.0, float("nan")]}, "not finite"),
        ({"dtype": "complex64"}, "dtype is 'complex64'"),
        ({"normalisation": "tile"}, "normalisation is 'tile', expected one of global, scene"),
        ({"precision": "fp4"}, "precision is 'fp4'"),
        ({"version": 1}, "version 1, and this autoreg reads 2"),
    ],
)
def test_a_wrong_value_is_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        ModelSpec.from_json(json.dumps(dataclasses.asdict(SPEC) | wrong))


def test_another_version_is_said_first() -> None:
    with pytest.raises(ModelError, match="version 1, and this autoreg reads 2"):
        ModelSpec.from_json(json.dumps({"version": 1, "fields": "of that time"}))


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", "[" * 100_000])
def test_what_is_no_spec_is_refused(text: str) -> None:
    with pytest.raises(ModelError, match="spec is not valid"):
        ModelSpec.from_json(text)
