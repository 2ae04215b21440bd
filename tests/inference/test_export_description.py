import json

import pytest

from danet.config import ModelConfig
from danet.inference.export_description import describe, parse
from danet.utils.errors import UserError

THRESHOLDS = {"score_threshold": 0.5, "iou_threshold": 0.5, "max_detections": 300}


def description(**changes):
    config = ModelConfig(name="danet_nano", classes=["drone", "bird"])
    found = describe(config, thresholds=THRESHOLDS, input_size=(64, 96), minimum_size=32, training={"step": 7})
    return json.loads(json.dumps({**found, **changes}))


def without(name):
    return {key: value for key, value in description().items() if key != name}


def changed(part, **changes):
    return description(**{part: {**description()[part], **changes}})


def test_parse_returns_what_describe_wrote():
    assert parse(json.dumps(description()), "a.onnx") == description()


def test_parse_refuses_another_definition_of_the_further_channels():
    config = ModelConfig(lags=[0.5])
    thresholds = description()["thresholds"]
    content = describe(config, thresholds=thresholds, input_size=None, minimum_size=32, training={})
    assert parse(json.dumps(content), "a.onnx") == content
    for version in (None, 1):
        content["preprocessing"]["extra_channels"] = version
        with pytest.raises(UserError, match=r"^a\.onnx: this version of DANet preprocesses images differently"):
            parse(json.dumps(content), "a.onnx")


@pytest.mark.parametrize("name", ["format", "classes", "preprocessing", "thresholds", "model", "training"])
def test_parse_names_a_missing_part(name):
    with pytest.raises(UserError, match=rf"^a\.onnx: not a file written by danet export \(it has no '{name}'\)$"):
        parse(json.dumps(without(name)), "a.onnx")


@pytest.mark.parametrize(
    "content",
    [
        7,
        [],
        description(format="danet-export-9"),
        description(classes=["drone"]),
        description(classes=None),
        description(model=7),
        description(thresholds=[]),
        description(training=3),
        changed("thresholds", score_threshold="x"),
        changed("thresholds", score_threshold=2),
        changed("thresholds", iou_threshold=float("nan")),
        changed("thresholds", max_detections=0),
        changed("thresholds", max_detections=10**18),
        changed("thresholds", max_detections=True),
        changed("thresholds", more=1),
        changed("preprocessing", input_size=[0, 0]),
        changed("preprocessing", input_size=[5]),
        changed("preprocessing", input_size=[64, 64.5]),
        changed("preprocessing", input_size="64x64"),
        changed("preprocessing", input_size=64),
        changed("preprocessing", input_size=[10**9, 10**9]),
        changed("model", zz=1),
        changed("model", depths=[10**9] * 4),
        changed("model", classes=["drone\ud800", "bird"]),
    ],
)
def test_parse_refuses_values_that_describe_does_not_write(content):
    with pytest.raises(UserError, match=r"^a\.onnx: not a file written by danet export \(") as raised:
        parse(json.dumps(content), "a.onnx")
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 300


@pytest.mark.parametrize("text", [None, "", "no json", "[" * 100000, "{", '{"a": ' + "9" * 5000 + "}"])
def test_parse_refuses_other_text(text):
    with pytest.raises(UserError, match=r"^a\.onnx: not a file written by danet export"):
        parse(text, "a.onnx")


def test_parse_refuses_another_preprocessing():
    with pytest.raises(UserError, match="preprocesses images differently"):
        parse(json.dumps(changed("preprocessing", clip=3.0)), "a.onnx")
