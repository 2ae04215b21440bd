"""Networks, ground truth and label assignments that the tests of assignment and of the detection loss share."""

import functools

import torch

from danet.config import ModelConfig
from danet.models import DANet, build_model
from danet.models.heads.assignment import Targets, assign_by_atss, assign_by_centre, assign_by_overlap

SIZE = (64, 96)
METHODS = ["centre", "atss", "overlap"]
"""Label assignments: two of the default head, and that of the head "paper"."""


def make_model(method: str, classes: int = 2) -> DANet:
    """A random danet_nano with the head that uses an assignment."""
    torch.manual_seed(0)
    names = [f"class{i}" for i in range(classes)]
    head = "paper" if method == "overlap" else "default"
    return build_model(ModelConfig(name="danet_nano", classes=names, head=head))


def ground_truth(boxes, labels=None, ignore=None):
    """Boxes, labels and ignore flags of a batch of one image."""
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    labels = torch.zeros(len(boxes), dtype=torch.long) if labels is None else torch.tensor(labels)
    ignore = torch.zeros(len(boxes), dtype=torch.bool) if ignore is None else torch.tensor(ignore)
    return [boxes], [labels], [ignore]


_cached_model = functools.cache(make_model)  # whose head is only read


def empty_maps(model):
    """Maps of an image of SIZE, one per level."""
    return [torch.zeros(1, 1, -(-SIZE[0] // s), -(-SIZE[1] // s)) for s in model.head.strides]


def assign(method, boxes, labels=None, ignore=None):
    """References, box index and whether a prediction is excluded from classification, for one image of SIZE."""
    model = _cached_model(method)
    maps = empty_maps(model)
    references = model.head.reference_boxes(maps)
    targets = Targets(*ground_truth(boxes, labels, ignore))
    if method == "overlap":
        return references, *assign_by_overlap(references, model.head.cell_sizes(maps), targets)
    function = {"centre": assign_by_centre, "atss": assign_by_atss}[method]
    box_index, positive, ignored = function(references, targets)
    assert (box_index[positive] >= 0).all()
    return references, box_index, ignored & ~positive
