"""danet.testing finds what is wrong with an operator, and passes operators that are right."""

import pytest
import torch

from danet.testing import CHECKS, check_operator


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


class WrongTangent(torch.autograd.Function):
    """`scale` with a wrong derivative in forward mode."""

    @staticmethod
    def forward(input, factor):
        return scale(input, factor)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_forward(*inputs)

    @staticmethod
    def jvp(ctx, input_tangent, factor_tangent):
        _, factor = ctx.saved_tensors
        return sum(t for t in (input_tangent, factor_tangent) if t is not None) * factor.sigmoid()


class WrongVmap(torch.autograd.Function):
    """`scale` with a vmap rule that looks only at the first tensor."""

    @staticmethod
    def forward(input, factor):
        return scale(input, factor)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def vmap(info, in_dims, input, factor):
        first = factor if in_dims[1] is None else factor[0]
        return torch.stack([scale(each, first) for each in input]), 0


def promotes_half(input, factor):
    return scale(input.float(), factor.float()) if input.dtype == torch.float16 else scale(input, factor)


def depends_on_threads(input, factor):
    return scale(input, factor) * (1 + 5e-7 * torch.get_num_threads())


def branches_on_values(input, factor):
    return scale(input, factor) if input.sum() < 1e9 else input


def rounds_under_autocast(input, factor):
    if torch.is_autocast_enabled("cpu"):
        return scale(input.bfloat16(), factor.bfloat16()).float()
    return scale(input, factor)


MISTAKES = {
    "values": lambda a, b: scale(a, b) * 1.001,
    "dtypes": promotes_half,
    "gradients": Wrong.apply,
    "second derivatives": Detached.apply,
    "forward mode": WrongTangent.apply,
    "memory layouts": ignores_strides,
    "empty batch": fails_on_empty,
    "not-a-number and infinity": swallows_nan,
    "threads": depends_on_threads,
    "uninitialized memory": reads_uninitialized,
    "export": branches_on_values,
    "autocast": rounds_under_autocast,
    "vmap": WrongVmap.apply,
}
"""By check, an operator whose mistake this check must find. opcheck and compile have tests of their own."""


def only(check):
    """The argument `skip` to run a single check."""
    return [name for name in CHECKS if name != check]


def test_every_check_has_a_mistake():
    assert {*MISTAKES, "opcheck", "compile"} == set(CHECKS)


@pytest.mark.parametrize("check", MISTAKES)
def test_check_operator_finds_the_mistake(check):
    with pytest.raises(AssertionError, match=f"\n{check}: "):
        check_operator(MISTAKES[check], scale, cases(), skip=only(check), quiet=True)


FLOAT32 = ["second derivatives", "forward mode", "empty batch", "not-a-number and infinity", "vmap"]


@pytest.mark.parametrize("check", FLOAT32)
def test_check_operator_finds_the_mistake_of_float32_alone(check):
    """An operator may have a kernel for one dtype only."""

    def wrong(input, factor):
        return (MISTAKES[check] if input.dtype == torch.float32 else scale)(input, factor)

    with pytest.raises(AssertionError, match=f"\n{check}: "):
        check_operator(wrong, scale, cases(), skip=only(check), quiet=True)


class LacksHalfGradient(torch.autograd.Function):
    """`scale` whose backward pass refuses a dtype that its forward pass accepts."""

    @staticmethod
    def forward(ctx, input, factor):
        ctx.save_for_backward(input, factor)
        return scale(input, factor)

    @staticmethod
    def backward(ctx, grad):
        if grad.dtype == torch.float16:
            raise TypeError("float16 is not supported")
        return Detached.backward(ctx, grad)


def test_dtype_that_only_the_backward_pass_refuses_is_a_failure():
    with pytest.raises(AssertionError, match=r"\ndtypes: .*float16 is not supported"):
        check_operator(LacksHalfGradient.apply, scale, cases(), skip=only("dtypes"), quiet=True)


def raise_type_error(input):
    raise TypeError("float16 is not supported")


@pytest.mark.parametrize("refuse", [raise_type_error, torch.special.bessel_j0])  # the second one has no such kernel
def test_dtype_that_the_operator_refuses_is_reported(refuse):
    def without_half(input, factor):
        if input.dtype == torch.float16:
            refuse(input)
        return scale(input, factor)

    report = check_operator(without_half, scale, cases(), skip=only("dtypes"), quiet=True)
    assert any(name == "dtypes" and "float16 refused" in explanation for name, _, explanation in report.rows)


@pytest.mark.parametrize("wrong_dtype", [torch.float64, torch.float32])
def test_check_operator_finds_a_wrong_fake_kernel(wrong_dtype):
    name = f"danet_test_{str(wrong_dtype).removeprefix('torch.')}::scale"
    operator = torch.library.custom_op(name, scale, mutates_args=(), schema="(Tensor input, Tensor factor) -> Tensor")
    operator.register_fake(lambda input, factor: input.new_empty(input.shape if input.dtype != wrong_dtype else ()))
    options = {"skip": only("opcheck"), "quiet": True, "overload": operator._opoverload}
    with pytest.raises(AssertionError, match="\nopcheck: "):
        check_operator(scale, scale, cases(), **options)


def test_check_operator_finds_graph_breaks():
    def breaks(input, factor):
        torch._dynamo.graph_break()
        return scale(input, factor)

    with pytest.raises(AssertionError, match="\ncompile: "):
        check_operator(breaks, scale, cases(), skip=only("compile"), quiet=True)


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
