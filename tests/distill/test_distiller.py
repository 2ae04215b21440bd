import pytest
import torch
from foreign import Foreign

from danet.config import ModelConfig
from danet.data.loader import Batch
from danet.distill import Distiller, Teacher, route
from danet.distill.eadm import distance
from danet.models import build_model

EDGES = (14.0, 18.0)
SCALES = ("small", "medium", "large")


def square(side, x=2.0):
    return [x, 3.0, x + side, 3.0 + side]


def make_batch(*images, labels=None, ignore=None, size=(64, 64)):
    """One image per argument, a list of the sides of its square boxes in pixels."""
    boxes = [torch.tensor([square(side) for side in sides]).reshape(-1, 4) for sides in images]
    labels = [torch.tensor(each) for each in labels or [[0] * len(b) for b in boxes]]
    ignore = [torch.tensor(each, dtype=torch.bool) for each in ignore or [[False] * len(b) for b in boxes]]
    torch.manual_seed(1)
    return Batch(torch.randn(len(boxes), 1, *size), boxes, labels, ignore)


@pytest.fixture
def student():
    torch.manual_seed(0)
    return build_model(ModelConfig(name="danet_nano")).train()


def make(student, scales=SCALES, **options):
    torch.manual_seed(2)
    teachers = {scale: Teacher(Foreign(widths=(16, 32, 64, 128))) for scale in scales}
    return Distiller(student.widths, teachers, **options)


class Counting(Foreign):
    """Records the images of every call."""

    def __init__(self) -> None:
        super().__init__(widths=(16, 32, 64, 128))
        self.seen = []

    def forward(self, x):
        self.seen.append(x)
        return super().forward(x)


def routes(*images, target=0, **options):
    batch = make_batch(*images, **options)
    return route(batch.boxes, batch.labels, batch.ignore, edges=EDGES, target=target).int().tolist()


def test_route_by_target_size():
    assert routes([10.0], [16.0], [30.0], []) == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]
    assert routes([10.0, 12.0, 40.0], [16.0, 20.0]) == [[1, 0], [0, 1], [1, 1]]
    assert routes([13.99], [14.0], [17.99], [18.0]) == [[1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1]]


def test_route_ignores_other_boxes():
    images = ([10.0, 16.0, 30.0], [10.0])
    assert routes(*images, labels=([0, 1, -1], [1])) == [[1, 0], [0, 0], [0, 0]]
    assert routes(*images, labels=([0, 1, -1], [1]), target=1) == [[0, 1], [1, 0], [0, 0]]
    assert routes(*images, ignore=([False, True, False], [True])) == [[1, 0], [0, 0], [1, 0]]


def test_distiller_sub_batches(student):
    networks = {scale: Counting() for scale in SCALES}
    distiller = Distiller(student.widths, {scale: Teacher(network) for scale, network in networks.items()})
    for network in networks.values():
        network.seen.clear()  # the call in the constructor of Teacher
    batch = make_batch([10.0], [], [30.0, 8.0], [11.0])
    distiller(student(batch.images), batch)
    (small,), (large,) = networks["small"].seen, networks["large"].seen
    assert torch.equal(small, batch.images[[0, 2, 3]]) and torch.equal(large, batch.images[[2]])
    assert networks["medium"].seen == []


def test_distiller_averages_distances(student):
    distiller = make(student, weight=0.3)
    batch = make_batch([10.0], [16.0, 10.0], [10.0], [])
    output = student(batch.images)
    expected = 0.0
    for scale, images in (("small", [0, 1, 2]), ("medium", [1])):
        maps = distiller.teachers[scale](batch.images[images])
        for eadm, feature, target in zip(distiller.eadms[scale], output.features, maps, strict=True):
            augmented, projected = eadm.project(feature[images], target)
            expected += distance(augmented, projected).mean().item() / 4 / 2
    assert distiller(output, batch)["sskd"].item() == pytest.approx(0.3 * expected, rel=1e-5)


@pytest.mark.parametrize("images", [([], [], []), ([16.0], [], [16.0])])
def test_distiller_zero_without_images(student, images):
    distiller = make(student, scales=("small", "large"))
    batch = make_batch(*images)
    term = distiller(student(batch.images), batch)["sskd"]
    assert term.item() == 0 and term.dtype == torch.float32


def test_distiller_leaves_teachers_unchanged(student):
    distiller = make(student).train()
    before = {s: {k: v.clone() for k, v in t.network.state_dict().items()} for s, t in distiller.teachers.items()}
    optimizer = torch.optim.AdamW([*student.parameters(), *distiller.parameters()], lr=1e-2)
    batch = make_batch([10.0], [16.0], [30.0], [16.0])
    for _ in range(3):
        optimizer.zero_grad()
        distiller(student(batch.images), batch)["sskd"].backward()
        optimizer.step()
        distiller.train()
    for scale, teacher in distiller.teachers.items():
        assert not any(module.training for module in teacher.network.modules())
        assert all(torch.equal(value, before[scale][name]) for name, value in teacher.network.state_dict().items())
        assert all(p.grad is None for p in teacher.network.parameters())
    owned = {id(t) for t in [*distiller.parameters(), *distiller.buffers()]}
    assert not any(id(t) in owned for t in distiller.teachers["small"].network.state_dict(keep_vars=True).values())
    assert all(name.startswith("eadms.") for name in distiller.state_dict())
    assert any(p.grad.ne(0).any() for p in student.backbone.stem.parameters())


def test_distiller_no_gradient_without_images(student):
    distiller = make(student)
    batch = make_batch([10.0], [11.0])
    distiller(student(batch.images), batch)["sskd"].backward()
    assert all(p.grad is None for scale in ("medium", "large") for p in distiller.eadms[scale].parameters())
    assert any(p.grad is not None for p in distiller.eadms["small"].parameters())


def test_distiller_other_widths_and_odd_sizes(student):
    distiller = Distiller(student.widths, {"small": Teacher(Foreign(widths=(16, 24, 64, 40)))})
    batch = make_batch([10.0], [10.0], size=(71, 90))
    distiller(student(batch.images), batch)["sskd"].backward()
    kinds = [type(eadm.adapter).__name__ for eadm in distiller.eadms["small"]]
    assert kinds == ["Identity", "Conv2d", "Identity", "Conv2d"]
    assert all(p.grad.isfinite().all() for p in distiller.parameters() if p.grad is not None)


def test_distiller_bfloat16(student):
    distiller = make(student)
    batch = make_batch([10.0], [16.0], [30.0], [16.0])
    full = distiller(student(batch.images), batch)["sskd"]
    with torch.autocast("cpu", torch.bfloat16):
        output = student(batch.images)
        half = distiller(output, batch)["sskd"]
    assert output.features[0].dtype == torch.bfloat16 and half.dtype == torch.float32
    assert half.item() == pytest.approx(full.item(), rel=0.03)
    half.backward()
    grads = [p.grad for p in [*student.backbone.parameters(), *distiller.parameters()] if p.grad is not None]
    assert grads and all(g.isfinite().all() and g.dtype == torch.float32 for g in grads)


def test_distiller_rejects_teachers(student):
    for scales in ((), ("small", "huge")):
        with pytest.raises(ValueError, match="Distiller: teachers must have keys from small, medium, large, got"):
            make(student, scales=scales)
