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


def unused():
    raise AssertionError("no images are needed")


def settled(model):
    """With the statistics of IMAGES in its norms, and scales that are not one; in eval mode."""
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    with torch.no_grad():
        for _ in range(60):
            model(IMAGES)
    return model.eval()


@pytest.fixture
def trained():
    return settled(make())


def test_same_classes_give_the_same_network(trained, tmp_path):
    save_weights(tmp_path / "w.safetensors", trained)
    model = make(seed=1)
    assert start_from(tmp_path / "w.safetensors", model, unused) == []
    for name, tensor in trained.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


@pytest.mark.parametrize("head", ["default", "paper"])
def test_scores_follow_the_names_of_the_classes(tmp_path, head):
    old = settled(make(["drone", "bird"], head))
    save_weights(tmp_path / "w.safetensors", old)
    new = make(["plane", "bird"], head, seed=1).eval()
    before = {name: tensor.clone() for name, tensor in new.state_dict().items()}
    assert start_from(tmp_path / "w.safetensors", new, unused) == ["plane"]
    logits = [
        [m.unflatten(1, (-1, 2 + (head == "paper")))[:, :, -2:] for m in net(IMAGES).logits] for net in (old, new)
    ]
    for theirs, ours in zip(*logits, strict=True):
        assert torch.equal(theirs[:, :, 1], ours[:, :, 1])  # bird
        assert not torch.allclose(theirs[:, :, 0], ours[:, :, 0])
    name = "head.classify.0.1.weight"
    rows = [state[name].unflatten(0, (-1, 2 + (head == "paper")))[:, -2] for state in (before, new.state_dict())]
    assert torch.equal(*rows)  # plane is as it was initialised


def test_a_single_class_out_of_several(trained, tmp_path):
    save_weights(tmp_path / "w.safetensors", trained)
    model = make(["bird"]).eval()
    assert start_from(tmp_path / "w.safetensors", model, unused) == []
    for theirs, ours in zip(trained(IMAGES).logits, model(IMAGES).logits, strict=True):
        assert torch.equal(theirs[:, 1:], ours)


def test_compact_weights_train_on_from_what_they_computed(trained, tmp_path):
    save_weights(tmp_path / "w.safetensors", trained, compact=True)
    compact, _ = load_weights(tmp_path / "w.safetensors")
    model = make(seed=1)
    start_from(tmp_path / "w.safetensors", model, lambda: IMAGES)
    assert model.training
    with torch.no_grad():
        expected = compact(IMAGES)
        evaluated, learning = model.eval()(IMAGES), model.train()(IMAGES)
        careless = compact.train()(IMAGES)

    def error(output):
        pairs = zip(output.features, expected.features, strict=True)
        return max(float((a - b).norm() / b.norm()) for a, b in pairs)

    assert error(evaluated) < 1e-4
    assert error(learning) < 0.02 < 0.3 < error(careless)
    assert not any(block.has_default_stats for block in model.modules() if hasattr(block, "has_default_stats"))


def test_statistics_of_some_images_do_for_others(trained, tmp_path):
    save_weights(tmp_path / "w.safetensors", trained, compact=True)
    model = make(seed=1)
    start_from(tmp_path / "w.safetensors", model, lambda: IMAGES)
    others = torch.randn(8, 1, 64, 96, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        expected, learning = trained(others).features, model(others).features
        whole = trained.train()(others).features

    def errors(features):
        return [float((a - b).norm() / b.norm()) for a, b in zip(features, expected, strict=True)]

    # A batch has statistics of its own, whose difference the whole weights show as well.
    for compact, reference in zip(errors(learning), errors(whole), strict=True):
        assert compact < 1.5 * reference


def test_the_package_s_own_weights():
    model = build_model(ModelConfig(name="danet_s", classes=["target", "drone"]))
    assert start_from("shipped", model, lambda: torch.randn(2, 1, 64, 64)) == ["target"]


def test_another_model_is_named(trained, tmp_path):
    save_weights(tmp_path / "w.safetensors", trained)
    with pytest.raises(
        UserError, match=r"w\.safetensors: weights of another model: model\.safem is True there and False"
    ):
        start_from(tmp_path / "w.safetensors", make(safem=False), unused)
