import dataclasses
import json

import pytest

from autoreg.errors import ModelError
from autoreg.spec import ModelSpec

SPEC = ModelSpec(
    bands=("red", "nir"),
    dtype="uint16",
    classes=("a", "b", "c"),
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
        ({"classes": ["a"]}, "1 classes"),
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
        ({"precision": "fp4"}, "precision is 'fp4'"),
        ({"version": 2}, "version 2, and this autoreg reads 1"),
    ],
)
def test_a_wrong_value_is_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        ModelSpec.from_json(json.dumps(dataclasses.asdict(SPEC) | wrong))


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", "[" * 100_000])
def test_what_is_no_spec_is_refused(text: str) -> None:
    with pytest.raises(ModelError, match="spec is not valid"):
        ModelSpec.from_json(text)
