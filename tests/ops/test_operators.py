"""Every differentiable operator passes all checks of `danet.testing.check_operator`."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from danet.ops import (
    dcnv3,
    dcnv3_reference,
    dcnv4,
    dcnv4_reference,
    deform_conv2d,
    deform_conv2d_reference,
    lcdc,
    lcdc_reference,
    ms_deform_attn,
    ms_deform_attn_reference,
    sdc,
    sdc_reference,
    softmax_gate,
    softmax_gate_reference,
)
from danet.testing import check_operator


@dataclass
class Subject:
    """An operator and its reference, both called as `call(function)(*tensors)`.

    schema: the name of the operator of torch.ops.danet, if its arguments are these tensors and then `options`.
    """

    call: Any
    operator: Any
    reference: Any
    cases: dict[str, tuple]  # the shapes of the tensors
    batched: Any = None
    schema: str = ""
    options: tuple = ()
    skip: tuple = ()


SDC = {"small": ((2, 4, 5, 6), (2, 36, 5, 6), (2, 18, 5, 6)), "rows": ((1, 64, 9, 40), (1, 36, 9, 40), (1, 18, 9, 40))}
WINDOW = (3, 3, 1, 1, 1, 1, 1, 1, 2, 2, 1.0)
LEVELS = torch.tensor([[4, 3], [2, 5]]), torch.tensor([0, 12])
# The matrix products of torch depend on the number of threads. Under autocast, deform_conv2d computes in float32
# (test_deform_conv2d_under_autocast_computes_in_float32).
PRODUCTS = ("threads", "autocast")


def convolution(function):
    return lambda *t: function(*t[:4], padding=1, mask=t[4])


SUBJECTS = {
    "sdc": Subject(
        lambda f: lambda *t: f(*t, groups=2),
        sdc,
        sdc_reference,
        SDC,
        schema="sdc",
        options=(2, 3, 3, 1, 1, 1, 1, 1, 1, 1.0, True, False),
    ),
    "dcnv3": Subject(
        lambda f: lambda *t: f(*t, *WINDOW),
        dcnv3,
        dcnv3_reference,
        {"small": ((2, 5, 6, 4), (2, 5, 6, 36), (2, 5, 6, 18))},
    ),
    "dcnv4": Subject(
        lambda f: lambda *t: f(*t, *WINDOW), dcnv4, dcnv4_reference, {"small": ((2, 5, 6, 4), (2, 5, 6, 56))}
    ),
    "deform_conv2d dense": Subject(
        convolution,
        deform_conv2d,
        deform_conv2d_reference,
        {"small": ((2, 4, 5, 6), (2, 18, 5, 6), (3, 4, 3, 3), (3,), (2, 9, 5, 6))},
        batched=[0, 1, 4],
        skip=PRODUCTS,
    ),
    "deform_conv2d depth-wise": Subject(
        convolution,
        deform_conv2d,
        deform_conv2d_reference,
        {"small": ((2, 4, 5, 6), (2, 36, 5, 6), (4, 1, 3, 3), (4,), (2, 18, 5, 6))},
        batched=[0, 1, 4],
        skip=PRODUCTS,
    ),
    "deform_conv2d groups": Subject(
        convolution,
        deform_conv2d,
        deform_conv2d_reference,
        {"small": ((2, 4, 5, 6), (2, 18, 5, 6), (6, 2, 3, 3), (6,), (2, 9, 5, 6))},
        batched=[0, 1, 4],
        skip=PRODUCTS,
    ),
    "ms_deform_attn": Subject(
        lambda f: lambda *t: f(t[0], *LEVELS, *t[1:], softmax=True),
        ms_deform_attn,
        ms_deform_attn_reference,
        {"small": ((2, 22, 2, 4), (2, 5, 2, 2, 3, 2), (2, 5, 2, 2, 3))},
        schema="ms_deform_attn",
        options=(*LEVELS, True),
        skip=("autocast",),  # only value is cast: test_ms_deform_attn_autocast_keeps_precise_locations
    ),
    "lcdc": Subject(
        lambda f: lambda *t: f(*t, gate=True),
        lcdc,
        lcdc_reference,
        {"small": ((2, 9, 4, 5), (1, 3)), "positions": ((1, 20, 3, 4), (12, 5))},
        batched=[0],
        schema="lcdc",
        options=(True,),
    ),
    "softmax_gate": Subject(
        lambda f: f, softmax_gate, softmax_gate_reference, {"small": ((2, 9, 4, 5),) * 2}, schema="softmax_gate"
    ),
}


@pytest.mark.parametrize("name", SUBJECTS)
def test_check_operator(name):
    subject = SUBJECTS[name]
    generator = torch.Generator().manual_seed(1)
    draw = lambda shape: torch.randn(shape, generator=generator)  # noqa: E731
    check_operator(
        subject.call(subject.operator),
        subject.call(subject.reference),
        {case: tuple(map(draw, shapes)) for case, shapes in subject.cases.items()},
        batched=subject.batched,
        overload=getattr(torch.ops.danet, subject.schema).default if subject.schema else None,
        options=subject.options,
        skip=subject.skip,
        quiet=True,
    )
