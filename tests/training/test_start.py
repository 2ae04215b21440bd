import pytest
import torch

from danet.checkpoint import load_weights, save_weights
from danet.config import ModelConfig
from danet.models import build_model
from danet.training.start import start_from
from danet.utils.errors import UserError

IMAGES = torch.randn(4, 1, 64, 96, generator=torch.Generator().manual_seed(1))


def make(classes=("drone", "bird"), head="default", seed=0, **options):
    torch.manual_seed(seed)
    return build_model(ModelConfig(name="danet_nano", classes=list(classes), head=head, **options))


def no_images():
    raise AssertionError("weights that are not compact need no calibration images")


def calibrated(model):
    """The model in eval mode, its norms with the statistics of IMAGES and with scales other than one."""
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    with torch.no_grad():
        for _ in range(60):
            model(IMAGES)
    return model.eval()


@pytest.fixture
def trained():
    return calibrated(make())


def test_start_from_same_classes_copies_the_network(trained, tmp_path):
    save_weights(tmp_path / "w.safetensors", trained)
    model = make(seed=1)
    assert start_from(tmp_path / "w.safetensors", model, no_images) == []
    for name, tensor in trained.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


@pytest.mark.parametrize("head", ["default", "paper"])
def test_start_from_copies_scores_by_class_name(tmp_path, head):
    old = calibrated(make(["drone", "bird"], head))
    save_weights(tmp_path / "w.safetensors", old)
    new = make(["plane", "bird"], head, seed=1).eval()
    before = {name: tensor.clone() for name, tensor in new.state_dict().items()}
    assert start_from(tmp_path / "w.safetensors", new, no_images) == ["plane"]
    logits = [
        [m.unflatten(1, (-1, 2 + (head == "paper")))[:, :, -2:] for m in net(IMAGES).logits] for net in (old, new)
    ]
    for theirs, ours in zip(*logits, strict=True):
        assert torch.equal(theirs[:, :, 1], ours[:, :, 1])  # bird
        assert not torch.allclose(theirs[:, :, 0], ours[:, :, 0])
    name = "head.classify.0.1.weight"
    rows = [state[name].unflatten(0, (-1, 2 + (head == "paper")))[:, -2] for state in (before, new.state_dict())]
    assert torch.equal(*rows)  # plane keeps its initial weights


def test_start_from_one_of_several_classes(trained, tmp_path):
    save_weights(tmp_path / "w.safetensors", trained)
    model = make(["bird"]).eval()
    assert start_from(tmp_path / "w.safetensors", model, no_images) == []
    for theirs, ours in zip(trained(IMAGES).logits, model(IMAGES).logits, strict=True):
        assert torch.equal(theirs[:, 1:], ours)


def test_start_from_compact_weights_calibrates_norms(trained, tmp_path):
    save_weights(tmp_path / "w.safetensors", trained, compact=True)
    compact, _ = load_weights(tmp_path / "w.safetensors")
    model = make(seed=1)
    start_from(tmp_path / "w.safetensors", model, lambda: IMAGES)
    assert model.training
    with torch.no_grad():
        expected = compact(IMAGES)
        evaluated, learning = model.eval()(IMAGES), model.train()(IMAGES)
        uncalibrated = compact.train()(IMAGES)

    def error(output):
        pairs = zip(output.features, expected.features, strict=True)
        return max(float((a - b).norm() / b.norm()) for a, b in pairs)

    assert error(evaluated) < 1e-4
    assert error(learning) < 0.02 < 0.3 < error(uncalibrated)
    assert not any(block.has_default_stats for block in model.modules() if hasattr(block, "has_default_stats"))


def test_calibrated_norms_fit_other_images(trained, tmp_path):
    save_weights(tmp_path / "w.safetensors", trained, compact=True)
    model = make(seed=1)
    start_from(tmp_path / "w.safetensors", model, lambda: IMAGES)
    others = torch.randn(8, 1, 64, 96, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        expected, learning = trained(others).features, model(others).features
        whole = trained.train()(others).features

    def errors(features):
        return [float((a - b).norm() / b.norm()) for a, b in zip(features, expected, strict=True)]

    # Batch statistics differ between batches; weights that are not compact show the same difference.
    for compact, reference in zip(errors(learning), errors(whole), strict=True):
        assert compact < 1.5 * reference


@pytest.mark.parametrize("name", ["danet_s", "danet_nano"])
def test_start_from_shipped_weights(name):
    model = build_model(ModelConfig(name=name, classes=["target", "drone"]))
    assert start_from("shipped", model, lambda: torch.randn(2, 1, 64, 64)) == ["target"]


def test_shipped_weights_of_another_architecture_are_an_error():
    model = build_model(ModelConfig(name="teacher_small"))
    with pytest.raises(UserError, match=r"none for model\.name teacher_small, only danet_nano"):
        start_from("shipped", model, lambda: torch.zeros(1))


@pytest.mark.parametrize("compact", [False, True])
def test_new_input_channels_start_from_zero(compact, tmp_path):
    old = calibrated(make(local_contrast=False, lags=[]))
    save_weights(tmp_path / "w.safetensors", old, compact=compact)
    new = make(seed=1, local_contrast=True, lags=[0.1, 0.5]).eval()
    images = torch.randn(4, 5, 64, 96, generator=torch.Generator().manual_seed(2))
    images[:, :1] = IMAGES
    start_from(tmp_path / "w.safetensors", new, lambda: images)
    for theirs, ours in zip(old(IMAGES).logits, new(images).logits, strict=True):
        assert torch.allclose(theirs, ours, atol=1e-3)
    new.train()(images).logits[0].sum().backward()
    gradient = new.backbone.stem.conv3x3.weight.grad
    assert (gradient.abs().sum(dim=(0, 2, 3)) > 0).all()  # so that the new channels are trained


def test_input_channels_are_copied_by_name(tmp_path):
    old = make(lags=[0.1, 0.5]).eval()
    for norm in old.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(norm.running_mean, -0.5, 0.5)
    save_weights(tmp_path / "w.safetensors", old)
    new = make(seed=1, local_contrast=True, lags=[0.5, 1.0, 0.1]).eval()
    start_from(tmp_path / "w.safetensors", new, no_images)
    images = torch.randn(2, 6, 64, 96, generator=torch.Generator().manual_seed(2))
    for theirs, ours in zip(old(images[:, [0, 4, 2, 5]]).logits, new(images).logits, strict=True):
        assert torch.allclose(theirs, ours, atol=1e-5)


def test_start_from_rejects_input_channels_that_the_model_lacks(tmp_path):
    save_weights(tmp_path / "w.safetensors", make(lags=[0.1]))
    with pytest.raises(UserError, match=r"weights of another model: model\.lags is \[0\.1\] there and \[\] here"):
        start_from(tmp_path / "w.safetensors", make(), no_images)


def test_start_from_rejects_another_model(trained, tmp_path):
    save_weights(tmp_path / "w.safetensors", trained)
    with pytest.raises(
        UserError, match=r"w\.safetensors: weights of another model: model\.safem is True there and False"
    ):
        start_from(tmp_path / "w.safetensors", make(safem=False), no_images)
