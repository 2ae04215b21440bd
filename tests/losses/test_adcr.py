import math

import pytest
import torch
from helpers import randomise_norms
from torch import nn

from danet.config import ModelConfig
from danet.data.loader import Batch
from danet.losses.adcr import ADCR, build_adcr, contrastive_terms
from danet.losses.region_sampling import sample_regions
from danet.models import build_model
from danet.training.options import AdcrOptions

SIZE = (64, 96)


def by_loops(positives, negatives, temperature, literal):
    """Eqs. 6 and 7, sample by sample, in float64: what each anchor costs."""

    def phi(x, y):
        cosine = sum(a * b for a, b in zip(x, y, strict=True))
        cosine /= math.sqrt(sum(a * a for a in x)) * math.sqrt(sum(b * b for b in y))
        return math.exp(cosine / temperature)

    costs = []
    for a, anchor in enumerate(positives):
        partners = [p for i, p in enumerate(positives) if literal or len(positives) == 1 or i != a]
        below = sum(phi(anchor, p) for p in partners) + sum(phi(anchor, n) for n in negatives)
        costs.append(-sum(math.log(phi(anchor, p) / below) for p in partners) / len(partners))
    return costs


@pytest.mark.parametrize("literal", [False, True])
@pytest.mark.parametrize(("positives", "negatives"), [(1, 3), (2, 6), (5, 0), (4, 7), (1, 0)])
def test_terms_equal_the_formula(positives, negatives, literal):
    generator = torch.Generator().manual_seed(positives)
    p, n = (torch.randn(count, 6, generator=generator, dtype=torch.float64) for count in (positives, negatives))
    unit = [nn.functional.normalize(v, dim=1) for v in (p, n)]
    expected = torch.tensor(by_loops(p.tolist(), n.tolist(), 0.3, literal), dtype=torch.float64)
    torch.testing.assert_close(contrastive_terms(*unit, 0.3, literal=literal), expected)


def batch(*images):
    """Boxes, labels and ignore flags of images that are given as lists of (box, label)."""
    boxes = [torch.tensor([box for box, _ in image], dtype=torch.float32).reshape(-1, 4) for image in images]
    labels = [torch.tensor([label for _, label in image], dtype=torch.int64) for image in images]
    return boxes, labels, [torch.zeros(len(label), dtype=torch.bool) for label in labels]


def maps(count, widths=(4, 8), strides=(4, 8)):
    torch.manual_seed(0)
    sizes = [(-(-SIZE[0] // s), -(-SIZE[1] // s)) for s in strides]
    return [torch.randn(count, w, *size, requires_grad=True) for w, size in zip(widths, sizes, strict=True)]


DRONES = [([10, 12, 24, 22], 0), ([50, 30, 61, 41], 0)]
BIRDS = [([70, 5, 80, 14], 1), ([8, 40, 20, 50], -1), ([30, 44, 40, 52], 1)]


@pytest.mark.parametrize("literal", [False, True])
def test_loss_is_the_mean_or_the_literal_sum(literal):
    """From the regions on: projected, flattened, compared; averaged over anchors and levels, or summed."""
    features = maps(2)
    adcr = ADCR((4, 8), (4, 8), temperature=0.2, negatives=1, literal=literal).eval()
    randomise_norms(adcr)
    # As many distractors as targets, so that all are taken and nothing else.
    boxes, labels, ignore = batch([DRONES[0], BIRDS[0]], [BIRDS[1], DRONES[1]])
    found = adcr.loss(features, torch.randn(2, 1, *SIZE), boxes, labels, ignore)
    levels = []
    for projector, feature, stride in zip(adcr.projectors, features, (4, 8), strict=True):
        projected = projector(sample_regions(feature, boxes, stride, 7)).double().flatten(1).tolist()
        costs = by_loops([projected[0], projected[3]], [projected[1], projected[2]], 0.2, literal)
        levels.append(sum(costs) if literal else sum(costs) / 2)
    assert found.dtype == torch.float32 and found.shape == ()
    assert found.item() == pytest.approx(sum(levels) if literal else sum(levels) / 2, rel=1e-5)


def test_regions_are_sampled_bilinearly():
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(24.0), indexing="ij")
    features = torch.stack([x, y, x * y])[None].double()  # bilinear functions: sampling is exact inside
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
        [([20, 20, 20, 20], 0), ([30, 30, 30, 42], 0), ([40, 10, 40, 10], 1)],  # empty ones
        [([0, 0, 9, 7], 0), ([90, 60, 96, 64], 0), ([-5, 50, 4, 70], -1), ([0, 0, 96, 64], 0)],  # at the border
        [([33, 21, 34, 22], 0), ([0, 0, 1, 1], 0), ([95, 63, 96, 64], 1)],  # one pixel
        [DRONES[0]],
    ],
)
@pytest.mark.parametrize("flat", [False, True])
def test_gradients_are_finite(image, flat):
    features = maps(2)
    if flat:
        features = [torch.zeros_like(f).requires_grad_() for f in features]
    adcr = ADCR((4, 8), (4, 8)).train()
    loss = adcr.loss(features, torch.randn(2, 1, *SIZE), *batch(image, []))
    loss.backward()
    assert loss.isfinite()
    for tensor in (*features, *adcr.parameters()):
        assert tensor.grad is not None and tensor.grad.isfinite().all()
    if not flat and len(image) > 1:
        assert all(f.grad.any() for f in features)


def test_no_positives_give_zero_with_a_graph():
    features = maps(2)
    adcr = ADCR((4, 8), (4, 8)).train()
    boxes, labels, ignore = batch(BIRDS, [DRONES[0]])
    ignore[1][:] = True
    loss = adcr.loss(features, torch.randn(2, 1, *SIZE), boxes, labels, ignore)
    assert loss.item() == 0.0
    loss.backward()
    for tensor in (*features, *adcr.parameters()):
        assert not tensor.grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_computed_in_float32_under_autocast(dtype):
    adcr = ADCR((4, 8), (4, 8)).train()
    features = [f.detach().to(dtype).requires_grad_() for f in maps(1)]
    arguments = torch.randn(1, 1, *SIZE), *batch([*DRONES, *BIRDS])
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        loss = adcr.loss(features, *arguments)
    torch.manual_seed(1)
    plain = adcr.loss([f.float() for f in features], *arguments)
    assert loss.dtype == torch.float32 and loss.item() == plain.item()
    loss.backward()
    assert all(f.grad.dtype == dtype and f.grad.isfinite().all() for f in features)


def test_learning_separates_targets_from_distractors():
    torch.manual_seed(0)
    feature = torch.randn(1, 8, 16, 24)
    mix = nn.Conv2d(8, 8, 1)
    adcr = ADCR((8,), (4,)).train()
    optimizer = torch.optim.Adam([*mix.parameters(), *adcr.parameters()], 0.01)
    arguments = torch.zeros(1, 1, *SIZE), *batch([*DRONES, *BIRDS])
    losses = []
    for _ in range(30):
        loss = adcr.loss([mix(feature)], *arguments)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize("levels", [1, 3])
def test_coarse_levels_can_be_left_out(levels):
    model = build_model(ModelConfig(name="danet_nano", classes=["drone", "bird"]))
    adcr = build_adcr(model, AdcrOptions(weight=1.0, levels=levels), 0)
    images = Batch(torch.randn(2, 1, *SIZE), *batch(DRONES, BIRDS))
    output = model(images.images)
    for feature in output.features:
        feature.retain_grad()
    adcr(output, images)["adcr"].backward()
    assert [feature.grad is not None for feature in output.features] == [True] * levels + [False] * (4 - levels)
    assert len(adcr.projectors) == levels


def test_built_for_a_model():
    model = build_model(ModelConfig(name="danet_nano", classes=["drone", "bird"]))
    adcr = build_adcr(model, AdcrOptions(weight=0.1, temperature=0.2, negatives=2, literal=True), 1)
    assert (adcr.target, adcr.temperature, adcr.negatives, adcr.literal) == (1, 0.2, 2, True)
    images = Batch(torch.randn(2, 1, *SIZE), *batch(DRONES, BIRDS))
    output = model(images.images)
    torch.manual_seed(0)
    terms = adcr(output, images)
    torch.manual_seed(0)
    assert list(terms) == ["adcr"] and terms["adcr"].item() == pytest.approx(
        0.1 * adcr.loss(output.features, *images).item()
    )
    assert terms["adcr"] > 0
