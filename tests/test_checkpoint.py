import resource
import signal
from dataclasses import asdict

import pytest
import torch
from helpers import randomise_norms
from safetensors.torch import save_file

from danet.checkpoint import (
    FORMAT,
    SHIPPED,
    add_metadata,
    load_tensors,
    load_weights,
    save_tensors,
    save_weights,
)
from danet.config import ModelConfig
from danet.models import build_model
from danet.utils.errors import UserError
from danet.utils.shipped_weights import shipped_names


def test_save_weights_round_trip(tmp_path):
    config = ModelConfig(name="danet_nano", classes=["drone", "bird"], acfa=False)
    model = build_model(config)
    path = tmp_path / "weights.safetensors"
    save_weights(path, model, {"step": 7})
    loaded, metadata = load_weights(path)
    assert loaded.config == config and metadata == {"step": 7} and not loaded.training
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    assert [p.name for p in tmp_path.iterdir()] == ["weights.safetensors"]


def test_compact_weights_predict_the_same_and_train(tmp_path):
    model = build_model(ModelConfig(name="danet_nano")).eval()
    randomise_norms(model)
    large, small = tmp_path / "large.safetensors", tmp_path / "small.safetensors"
    save_weights(large, model)
    save_weights(small, model, {"step": 7}, compact=True)
    assert small.stat().st_size < 0.5 * large.stat().st_size
    loaded, metadata = load_weights(small)
    assert metadata == {"step": 7} and loaded.state_dict().keys() == model.state_dict().keys()
    image = torch.randn(1, 1, 64, 96)
    with torch.no_grad():
        expected, got = model(image), loaded(image)
    for a, b in zip(expected.logits, got.logits, strict=True):
        assert (a.sigmoid() - b.sigmoid()).abs().max() < 2e-3
        assert (a.sigmoid() - b.sigmoid()).abs().max() > 0  # float16 was used
    loaded.train()
    sum(each.square().mean() for each in loaded(torch.randn(2, 1, 64, 96)).logits).backward()
    branch = loaded.backbone.stages[0][0]
    assert branch.norm1x1.weight.grad.abs().max() > 0, "the folded branches get gradients"


def write_text(path):
    path.write_text("no weights\n" * 50)


def write_nothing(path):
    path.write_bytes(b"")


def write_pickle(path):
    torch.save({"a": torch.zeros(2)}, path)


def write_foreign(path):
    save_file({"conv.weight": torch.zeros(2, 2)}, path)


def write_truncated(path):
    save_weights(path, build_model(ModelConfig(name="danet_nano")))
    path.write_bytes(path.read_bytes()[:-1000])


def write_no_metadata(path):
    model = build_model(ModelConfig(name="danet_nano"))
    save_tensors(path, FORMAT, model.state_dict(), {"config": asdict(model.config)})


def write_config(**changes):
    def write(path):
        model = build_model(ModelConfig(name="danet_nano"))
        header = {"config": {**asdict(model.config), **changes}, "metadata": {}}
        save_tensors(path, FORMAT, model.state_dict(), header)

    return write


def write_header(header):
    def write(path):
        save_file({"a": torch.zeros(2)}, path, metadata={"format": FORMAT, "header": header})

    return write


def write_value(value):
    def write(path):
        model = build_model(ModelConfig(name="danet_nano"))
        model.neck.state_dict()[next(iter(model.neck.state_dict()))].view(-1)[3] = value
        save_weights(path, model)

    return write


def write_small_compact(path):
    """A compact file whose tensors would be broadcast to the shapes of the network."""
    model = build_model(ModelConfig(name="danet_nano"))
    save_weights(path, model, compact=True)
    tensors, header = load_tensors(path, FORMAT)
    name = next(name for name, tensor in tensors.items() if tensor.ndim == 4 and tensor.shape[2] == 3)
    save_tensors(path, FORMAT, {**tensors, name: tensors[name][:, :1, :1, :1]}, header)


def write_compact_without_head(path):
    save_weights(path, build_model(ModelConfig(name="danet_nano")), compact=True)
    tensors, header = load_tensors(path, FORMAT)
    save_tensors(path, FORMAT, {name: value for name, value in tensors.items() if not name.startswith("head")}, header)


def write_float8(path):
    save_weights(path, build_model(ModelConfig(name="danet_nano")))
    tensors, header = load_tensors(path, FORMAT)
    name = next(name for name in tensors if name.startswith("neck"))
    save_tensors(path, FORMAT, {**tensors, name: tensors[name].to(torch.float8_e4m3fn)}, header)


def write_other_architecture(path):
    model = build_model(ModelConfig(name="danet_nano"))
    model.config = ModelConfig(name="danet_s")
    save_weights(path, model)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (write_text, "not a readable safetensors file"),
        (write_nothing, "not a readable safetensors file"),
        (write_pickle, "not a readable safetensors file"),
        (write_truncated, "not a readable safetensors file"),
        (write_foreign, "a safetensors file, but not of kind danet-weights-1"),
        (write_no_metadata, "weights do not fit this version of DANet .'metadata'"),
        (write_other_architecture, "weights do not fit this version of DANet"),
        (write_config(depths=[10**9] * 4), r"depths is larger than 4096"),
        (write_config(depths=[4000] * 4), r"depths asks for 16000 blocks, but the file has only"),
        (write_config(depths=[100, 1, 1, 1], widths=[4096] * 4), "asks for"),
        (write_config(widths=[4096] * 4), "asks for .* values, but the file has only"),
        (write_config(neck_width=10**12), "neck_width is larger than 4096"),
        (write_config(input_channels=10**400), "input_channels is larger than 4096"),
        (write_config(classes=["a"] * 100000), "classes is larger than 4096"),
        (write_config(classes=["drone\ud800"]), r"classes: 'drone\\ud800' is not a printable name"),
        (write_config(classes=[["drone"]]), "--classes: expected"),
        (write_config(depths="abc"), "--depths: expected"),
        (write_config(name=None), "--name: expected"),
        (write_config(unknown=1), "unknown option unknown"),
        (write_header("[" * 100000), "its header is nested too deeply"),
        (write_header("[]"), "its header is no JSON object"),
        (write_header("{}"), "weights do not fit this version of DANet"),
        (write_header('{"config": 7}'), "must be a JSON object, got int"),
        (write_header('{"config": {"groups": ' + "9" * 5000 + "}}"), "not a readable safetensors file"),
        (write_small_compact, "weights do not fit this version of DANet .* has the shape"),
        (write_compact_without_head, "weights do not fit this version of DANet"),
        (write_float8, r"neck\.\S+ has the dtype float8_e4m3fn, which is not supported"),
        (write_value(float("nan")), r"neck\.\S+ holds NaN or infinite values, got 1 of \d+"),
        (write_value(float("inf")), r"neck\.\S+ holds NaN or infinite values, got 1 of \d+"),
    ],
)
def test_load_weights_rejects_other_files(tmp_path, write, message):
    path = tmp_path / "weights.safetensors"
    write(path)
    with pytest.raises(UserError, match=message) as caught:
        load_weights(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 400


@pytest.mark.parametrize("options", [{"lags": [0.5]}, {"lags": [0.1, 0.5]}, {"local_contrast": True}])
def test_load_weights_rejects_another_definition_of_the_input_channels(tmp_path, options):
    path = tmp_path / "weights.safetensors"
    save_weights(path, build_model(ModelConfig(name="danet_nano", **options)), {"epochs": 1})
    assert load_weights(path)[1] == {"epochs": 1}
    tensors, header = load_tensors(path, FORMAT)
    if options == {"lags": [0.1, 0.5]}:  # the first definition had no channel for what several lags share
        tensors = {
            key: value[:, :3] if key.startswith("backbone.stem.conv") else value for key, value in tensors.items()
        }
    for version in (None, 1):
        save_tensors(path, FORMAT, tensors, {**header, "extra_channels": version})
        with pytest.raises(UserError, match=r"another definition of the input channels.*train it again"):
            load_weights(path)


def test_load_weights_names_a_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.safetensors: no such file"):
        load_weights(tmp_path / "nowhere.safetensors")
    with pytest.raises(UserError, match="a: no such file"):
        load_weights("a" * 300)


def test_load_weights_rejects_a_folder(tmp_path):
    with pytest.raises(UserError, match=r"is a folder; name the weights in it, such as .*weights\.safetensors"):
        load_weights(tmp_path)


def test_save_weights_on_a_full_disk_leaves_nothing(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(UserError, match=r"w\.safetensors: cannot be written"):
            save_weights(tmp_path / "w.safetensors", build_model(ModelConfig(name="danet_nano")))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []


def test_weights_in_the_package_have_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "danet_s" in shipped_names()
    assert load_weights("danet_s")[0].config == load_weights(SHIPPED)[0].config
    add_metadata("danet_s", "own.safetensors", {"place": "roof"})
    assert load_weights("own.safetensors")[1]["place"] == "roof"
    with pytest.raises(UserError, match=r"danet_x: no such file; weights in the package: .*danet_s"):
        load_weights("danet_x")
    save_weights("danet_s", build_model(ModelConfig(name="danet_nano")))  # a file comes first
    assert load_weights("danet_s")[0].config.name == "danet_nano"
