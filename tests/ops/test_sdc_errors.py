"""The exact error line for every invalid argument of sdc."""

import math

import pytest
import torch

from danet.ops import sdc, sdc_reference


def zeros(*shape, dtype=torch.float32, device="cpu"):
    return torch.zeros(shape, dtype=dtype, device=device)


GOOD = {"input": zeros(2, 8, 40, 40), "offset": zeros(2, 72, 40, 40), "mask": zeros(2, 36, 40, 40), "groups": 4}

# difference from GOOD, error type, error text
ERRORS = [
    ({"input": [1]}, TypeError, "sdc: input must be a tensor, got list"),
    ({"offset": None}, TypeError, "sdc: offset must be a tensor, got NoneType"),
    (
        {"input": zeros(2, 8, 40, 40, dtype=torch.int64)},
        TypeError,
        "sdc: input must be float64, float32, float16 or bfloat16, got int64",
    ),
    (
        {"mask": zeros(2, 36, 40, 40, dtype=torch.complex64)},
        TypeError,
        "sdc: mask must be float64, float32, float16 or bfloat16, got complex64",
    ),
    ({"input": zeros(2, 8).to_sparse()}, TypeError, "sdc: input must be a strided (dense) tensor, got sparse_coo"),
    ({"input": zeros(8, 40, 40)}, ValueError, "sdc: input must be [N, C, H, W], got [8, 40, 40]"),
    (
        {"input": zeros(2, 8, 0, 40)},
        ValueError,
        "sdc: input must be [N, C, H, W] with C, H, W >= 1, got [2, 8, 0, 40]",
    ),
    (
        {"offset": zeros(2, 72, 40, 40, dtype=torch.float64)},
        TypeError,
        "sdc: offset must have input's dtype float32, got float64",
    ),
    (
        {"mask": zeros(2, 36, 40, 40, dtype=torch.bfloat16)},
        TypeError,
        "sdc: mask must have input's dtype float32, got bfloat16",
    ),
    ({"mask": zeros(2, 36, 40, 40, device="meta")}, ValueError, "sdc: mask must be on input's device cpu, got meta"),
    (
        {"offset": zeros(2, 18, 40, 40)},
        ValueError,
        "sdc: offset must be [N, 2*G*K, H_out, W_out] = [2, 72, 40, 40], got [2, 18, 40, 40]",
    ),
    (
        {"offset": zeros(2, 72, 1600)},
        ValueError,
        "sdc: offset must be [N, 2*G*K, H_out, W_out] = [2, 72, 40, 40], got [2, 72, 1600]",
    ),
    (
        {"mask": zeros(1, 36, 40, 40)},
        ValueError,
        "sdc: mask must be [N, G*K, H_out, W_out] = [2, 36, 40, 40], got [1, 36, 40, 40]",
    ),
    (
        {"remove_center": True},
        ValueError,
        "sdc: offset must be [N, 2*G*K, H_out, W_out] = [2, 64, 40, 40], got [2, 72, 40, 40]",
    ),
    (
        {"stride": (2, 1)},
        ValueError,
        "sdc: offset must be [N, 2*G*K, H_out, W_out] = [2, 72, 20, 40], got [2, 72, 40, 40]",
    ),
    ({"groups": 3}, ValueError, "sdc: groups must divide C = 8, got 3"),
    ({"groups": 0}, ValueError, "sdc: groups must be >= 1, got 0"),
    ({"groups": 2.0}, TypeError, "sdc: groups must be an integer, got 2.0"),
    ({"groups": True}, TypeError, "sdc: groups must be an integer, got True"),
    ({"kernel_size": 0}, ValueError, "sdc: kernel_size must be >= 1, got 0"),
    ({"kernel_size": (3, 0)}, ValueError, "sdc: kernel_size must be >= 1, got (3, 0)"),
    (
        {"kernel_size": (3, 3, 3)},
        TypeError,
        "sdc: kernel_size must be an integer or a pair of integers, got (3, 3, 3)",
    ),
    ({"stride": "2"}, TypeError, "sdc: stride must be an integer or a pair of integers, got '2'"),
    ({"stride": (1, 0)}, ValueError, "sdc: stride must be >= 1, got (1, 0)"),
    ({"padding": -1}, ValueError, "sdc: padding must be >= 0, got -1"),
    ({"dilation": (1.5, 1)}, TypeError, "sdc: dilation must be an integer or a pair of integers, got (1.5, 1)"),
    ({"dilation": 0}, ValueError, "sdc: dilation must be >= 1, got 0"),
    (
        {"dilation": 30},
        ValueError,
        "sdc: the dilated window must fit into the padded input; "
        "the output would have the size [H_out, W_out] = [-18, -18]",
    ),
    (
        {"offset_scale": torch.tensor(1.5, requires_grad=True)},
        TypeError,
        "sdc: offset_scale is a constant without a gradient, got a tensor that requires one; multiply the offset by "
        "the tensor instead, or pass value.detach()",
    ),
    (
        {"input": torch.zeros(1).expand(2, 8, 1, 2**24 + 1)},
        ValueError,
        f"sdc: input must have at most 2^24 rows and columns, got 1 x {2**24 + 1}",
    ),
    ({"offset_scale": "1"}, TypeError, "sdc: offset_scale must be a number, got '1'"),
    ({"offset_scale": math.nan}, ValueError, "sdc: offset_scale must be finite, got nan"),
    ({"softmax": 1}, TypeError, "sdc: softmax must be True or False, got 1"),
    ({"remove_center": None}, TypeError, "sdc: remove_center must be True or False, got None"),
    (
        {"remove_center": True, "kernel_size": (3, 2)},
        ValueError,
        "sdc: remove_center needs an odd number of taps above 1, got 3 * 2 taps",
    ),
    (
        {"remove_center": True, "kernel_size": 1},
        ValueError,
        "sdc: remove_center needs an odd number of taps above 1, got 1 * 1 taps",
    ),
]


@pytest.mark.parametrize(("change", "error", "text"), ERRORS, ids=[text for _, _, text in ERRORS])
def test_sdc_error(change, error, text):
    for function in (sdc, sdc_reference):
        with pytest.raises(error) as caught:
            function(**{**GOOD, **change})
        assert str(caught.value) == text
