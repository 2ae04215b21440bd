"""danet.testing finds what is wrong with an operator, and passes operators that are right."""

import pytest
import torch

from danet.ops import deform_conv2d, deform_conv2d_reference, sdc, sdc_reference
from danet.testing import CHECKS, check_operator

QUICK = ["compile", "export", "opcheck"]


def scale(input, factor):
    return input * factor.sigmoid()


def cases():
    generator = torch.Generator().manual_seed(0)
    return {"small": tuple(torch.randn(2, 3, 4, generator=generator) for _ in range(2))}


class Wrong(torch.autograd.Function):
    """`scale` with a wrong gradient of the factor."""

    @staticmethod
    def forward(ctx, input, factor):
        ctx.save_for_backward(input, factor)
        return scale(input, factor)

    @staticmethod
    def backward(ctx, grad):
        input, factor = ctx.saved_tensors
        return grad * factor.sigmoid(), grad * input


class Detached(torch.autograd.Function):
    """`scale` with right gradients, which lack derivatives of their own."""

    @staticmethod
    def forward(ctx, input, factor):
        ctx.save_for_backward(input, factor)
        return scale(input, factor)

    @staticmethod
    def backward(ctx, grad):
        input, factor = (t.detach() for t in ctx.saved_tensors)
        return grad * factor.sigmoid(), grad * input * factor.sigmoid() * (1 - factor.sigmoid())


def reads_uninitialized(input, factor):
    out = torch.empty_like(input)
    out[0] = scale(input, factor)[0].detach()
    return scale(input, factor) + (out - out.nan_to_num(0.0)).sum().detach()


def ignores_strides(input, factor):
    flat = torch.as_strided(input, (input.numel(),), (1,), input.storage_offset())
    return scale(flat.view(input.shape), factor)


def swallows_nan(input, factor):
    return scale(input.nan_to_num(0.0), factor)


def fails_on_empty(input, factor):
    if input.shape[0] == 0:
        raise RuntimeError("no images")
    return scale(input, factor)


MISTAKES = {
    "values": lambda a, b: scale(a, b) * 1.001,
    "gradients": Wrong.apply,
    "second derivatives": Detached.apply,
    "forward mode": Wrong.apply,
    "memory layouts": ignores_strides,
    "empty batch": fails_on_empty,
    "not-a-number and infinity": swallows_nan,
    "uninitialized memory": reads_uninitialized,
}


@pytest.mark.parametrize("check", MISTAKES)
def test_check_operator_finds_the_mistake(check):
    with pytest.raises(AssertionError, match=f"\n{check}: "):
        check_operator(MISTAKES[check], scale, cases(), skip=QUICK, quiet=True)


def test_check_operator_finds_graph_breaks():
    def breaks(input, factor):
        torch._dynamo.graph_break()
        return scale(input, factor)

    with pytest.raises(AssertionError, match="\ncompile: "):
        check_operator(breaks, scale, cases(), skip=[name for name in CHECKS if name != "compile"], quiet=True)


def test_check_operator_passes_and_prints(capsys):
    report = check_operator(scale, scale, cases(), skip=["compile"])
    printed = capsys.readouterr().out
    assert [name for name, _, _ in report.rows] == list(CHECKS)
    assert report.failures == [] and str(report) in printed
    assert ("compile", "skipped", "on request") in report.rows
    assert ("opcheck", "skipped", "no overload is given") in report.rows


def test_check_operator_argument_errors():
    with pytest.raises(ValueError, match=r"check_operator: skip must name checks of CHECKS, got \['speed'\]"):
        check_operator(scale, scale, cases(), skip=["speed"])
    with pytest.raises(ValueError, match="check_operator: cases must have at least one case, got none"):
        check_operator(scale, scale, {})


def test_check_operator_on_sdc():
    generator = torch.Generator().manual_seed(1)
    small = tuple(torch.randn(shape, generator=generator) for shape in ((2, 4, 5, 6), (2, 36, 5, 6), (2, 18, 5, 6)))
    check_operator(
        lambda *t: sdc(*t, groups=2),
        lambda *t: sdc_reference(*t, groups=2),
        {"small": small},
        overload=torch.ops.danet.sdc.default,
        options=(2, 3, 3, 1, 1, 1, 1, 1, 1, 1.0, True, False),
        skip=["compile", "export"],  # tests/ops/test_torch.py
        quiet=True,
    )


def test_check_operator_on_deform_conv2d():
    generator = torch.Generator().manual_seed(1)
    shapes = (2, 4, 5, 6), (2, 18, 5, 6), (3, 4, 3, 3), (3,), (2, 9, 5, 6)
    check_operator(
        lambda *t: deform_conv2d(*t[:4], padding=1, mask=t[4]),
        lambda *t: deform_conv2d_reference(*t[:4], padding=1, mask=t[4]),
        {"small": tuple(torch.randn(shape, generator=generator) for shape in shapes)},
        batched=[0, 1, 4],
        skip=["compile", "export", "threads"],  # the matrix products of torch depend on the number of threads
        quiet=True,
    )
