import math

import pytest
import torch
from helpers import randomise_norms
from torch import nn

from danet.config import ModelConfig
from danet.data.loader import Batch
from danet.losses.adcr import ADCR, contrastive_terms
from danet.losses.region_sampling import sample_regions
from danet.models import build_model

SIZE = (64, 96)


def loop_reference(positives, negatives, temperature, literal):
    """Eqs. 6 and 7 in float64, one sample at a time: the loss of each anchor."""

    def phi(x, y):
        cosine = sum(a * b for a, b in zip(x, y, strict=True))
        cosine /= math.sqrt(sum(a * a for a in x)) * math.sqrt(sum(b * b for b in y))
        return math.exp(cosine / temperature)

    losses = []
    for a, anchor in enumerate(positives):
        pairs = [p for i, p in enumerate(positives) if literal or len(positives) == 1 or i != a]
        denominator = sum(phi(anchor, p) for p in pairs) + sum(phi(anchor, n) for n in negatives)
        losses.append(-sum(math.log(phi(anchor, p) / denominator) for p in pairs) / len(pairs))
    return losses


@pytest.mark.parametrize("literal", [False, True])
@pytest.mark.parametrize(("positives", "negatives"), [(1, 3), (2, 6), (5, 0), (4, 7), (1, 0)])
def test_contrastive_terms_equal_the_formula(positives, negatives, literal):
    generator = torch.Generator().manual_seed(positives)
    p, n = (torch.randn(count, 6, generator=generator, dtype=torch.float64) for count in (positives, negatives))
    unit = [nn.functional.normalize(v, dim=1) for v in (p, n)]
    expected = torch.tensor(loop_reference(p.tolist(), n.tolist(), 0.3, literal), dtype=torch.float64)
    torch.testing.assert_close(contrastive_terms(*unit, 0.3, literal=literal), expected)


def make_batch(*annotations, images=None):
    """A batch from a list of (box, label) per image; the images are random by default."""
    boxes = [torch.tensor([box for box, _ in image], dtype=torch.float32).reshape(-1, 4) for image in annotations]
    labels = [torch.tensor([label for _, label in image], dtype=torch.int64) for image in annotations]
    ignore = [torch.zeros(len(label), dtype=torch.bool) for label in labels]
    return Batch(torch.randn(len(boxes), 1, *SIZE) if images is None else images, boxes, labels, ignore)


def make_maps(count, widths=(4, 8), strides=(4, 8)):
    torch.manual_seed(0)
    sizes = [(-(-SIZE[0] // s), -(-SIZE[1] // s)) for s in strides]
    return [torch.randn(count, w, *size, requires_grad=True) for w, size in zip(widths, sizes, strict=True)]


DRONES = [([10, 12, 24, 22], 0), ([50, 30, 61, 41], 0)]
BIRDS = [([70, 5, 80, 14], 1), ([8, 40, 20, 50], -1), ([30, 44, 40, 52], 1)]


@pytest.mark.parametrize("literal", [False, True])
def test_adcr_is_the_mean_or_literal_sum_over_anchors(literal):
    features = make_maps(2)
    adcr = ADCR((4, 8), (4, 8), temperature=0.2, negatives=1, literal=literal).eval()
    randomise_norms(adcr)
    # As many distractors as targets: all of them are used, and no other regions.
    batch = make_batch([DRONES[0], BIRDS[0]], [BIRDS[1], DRONES[1]])
    found = adcr.loss(features, batch)
    levels = []
    for projector, feature, stride in zip(adcr.projectors, features, (4, 8), strict=True):
        projected = projector(sample_regions(feature, batch.boxes, stride, 7)).double().flatten(1).tolist()
        losses = loop_reference([projected[0], projected[3]], [projected[1], projected[2]], 0.2, literal)
        levels.append(sum(losses) if literal else sum(losses) / 2)
    assert found.dtype == torch.float32 and found.shape == ()
    assert found.item() == pytest.approx(sum(levels) if literal else sum(levels) / 2, rel=1e-5)


def test_sample_regions_is_bilinear():
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(24.0), indexing="ij")
    features = torch.stack([x, y, x * y])[None].double()  # bilinear functions, which are sampled exactly inside
    regions = [torch.tensor([[10.0, 12.0, 24.0, 33.0], [40.0, 40.0, 40.0, 40.0]], dtype=torch.float64)]
    found = sample_regions(features, regions, 4, 7)
    steps = (torch.arange(7, dtype=torch.float64) + 0.5) / 7
    at_x, at_y = (10 + 14 * steps) / 4 - 0.5, (12 + 21 * steps) / 4 - 0.5
    torch.testing.assert_close(found[0, 0], at_x.expand(7, 7))
    torch.testing.assert_close(found[0, 1], at_y[:, None].expand(7, 7))
    torch.testing.assert_close(found[0, 2], at_y[:, None] * at_x)
    torch.testing.assert_close(found[1, 0], torch.full((7, 7), 9.5).double())


@pytest.mark.parametrize(
    "image",
    [
        [DRONES[0], DRONES[0], BIRDS[0], BIRDS[0]],  # the same box twice
        [([20, 20, 20, 20], 0), ([30, 30, 30, 42], 0), ([40, 10, 40, 10], 1)],  # without area
        [([0, 0, 9, 7], 0), ([90, 60, 96, 64], 0), ([-5, 50, 4, 70], -1), ([0, 0, 96, 64], 0)],  # at the border
        [([33, 21, 34, 22], 0), ([0, 0, 1, 1], 0), ([95, 63, 96, 64], 1)],  # one pixel
        [DRONES[0]],
    ],
)
@pytest.mark.parametrize("flat", [False, True])
def test_adcr_gradients_are_finite(image, flat):
    features = make_maps(2)
    if flat:
        features = [torch.zeros_like(f).requires_grad_() for f in features]
    adcr = ADCR((4, 8), (4, 8)).train()
    loss = adcr.loss(features, make_batch(image, []))
    loss.backward()
    assert loss.isfinite()
    for tensor in (*features, *adcr.parameters()):
        assert tensor.grad is not None and tensor.grad.isfinite().all()
    if not flat and len(image) > 1:
        assert all(f.grad.any() for f in features)


def test_adcr_without_positives_is_zero_with_a_graph():
    features = make_maps(2)
    adcr = ADCR((4, 8), (4, 8)).train()
    batch = make_batch(BIRDS, [DRONES[0]])
    batch.ignore[1][:] = True
    loss = adcr.loss(features, batch)
    assert loss.item() == 0.0
    loss.backward()
    for tensor in (*features, *adcr.parameters()):
        assert not tensor.grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_adcr_is_float32_under_autocast(dtype):
    adcr = ADCR((4, 8), (4, 8)).train()
    features = [f.detach().to(dtype).requires_grad_() for f in make_maps(1)]
    batch = make_batch([*DRONES, *BIRDS])
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        loss = adcr.loss(features, batch)
    torch.manual_seed(1)
    plain = adcr.loss([f.float() for f in features], batch)
    assert loss.dtype == torch.float32 and loss.item() == plain.item()
    loss.backward()
    assert all(f.grad.dtype == dtype and f.grad.isfinite().all() for f in features)


def test_adcr_separates_targets_from_distractors():
    torch.manual_seed(0)
    feature = torch.randn(1, 8, 16, 24)
    mix = nn.Conv2d(8, 8, 1)
    adcr = ADCR((8,), (4,)).train()
    optimizer = torch.optim.Adam([*mix.parameters(), *adcr.parameters()], 0.01)
    batch = make_batch([*DRONES, *BIRDS], images=torch.zeros(1, 1, *SIZE))
    losses = []
    for _ in range(30):
        loss = adcr.loss([mix(feature)], batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize("levels", [1, 3])
def test_adcr_uses_the_finest_levels(levels):
    model = build_model(ModelConfig(name="danet_nano", classes=["drone", "bird"]))
    adcr = ADCR(model.widths[:levels], model.backbone.strides[:levels])
    batch = make_batch(DRONES, BIRDS)
    output = model(batch.images)
    for feature in output.features:
        feature.retain_grad()
    adcr(output, batch)["adcr"].backward()
    assert [feature.grad is not None for feature in output.features] == [True] * levels + [False] * (4 - levels)
    assert len(adcr.projectors) == levels


def test_adcr_weights_its_loss():
    model = build_model(ModelConfig(name="danet_nano", classes=["drone", "bird"]))
    options = {"target": 1, "temperature": 0.2, "negatives": 2, "literal": True}
    adcr = ADCR(model.widths, model.backbone.strides, weight=0.1, **options)
    assert {name: getattr(adcr, name) for name in options} == options
    batch = make_batch(DRONES, BIRDS)
    output = model(batch.images)
    torch.manual_seed(0)
    terms = adcr(output, batch)
    torch.manual_seed(0)
    assert list(terms) == ["adcr"] and terms["adcr"].item() == pytest.approx(
        0.1 * adcr.loss(output.features, batch).item()
    )
    assert terms["adcr"] > 0
