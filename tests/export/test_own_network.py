"""Networks of a user's own with the operators of danet.ops, as ONNX files in ONNX Runtime."""

import pytest
import torch
from torch import nn

from danet.export import export_onnx
from danet.inference.onnx_network import open_session
from danet.ops import (
    SDC,
    DCNv3,
    deform_conv2d,
    lcdc,
    ms_deform_attn,
    prepare_rep_conv,
    rep_conv,
    sdc,
    softmax_gate,
)
from danet.utils.errors import UserError

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


class Network(nn.Module):
    """SDC, sdc with other options, a dense deform_conv2d and DCNv3."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.sdc = SDC(8, groups=2)
        self.predictor = nn.Conv2d(8, 54, 3, padding=1)
        self.weight = nn.Parameter(torch.randn(6, 8, 3, 3))
        self.bias = nn.Parameter(torch.randn(6))
        self.dcnv3 = DCNv3(6, group=2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.sdc(self.stem(images))
        predicted = self.predictor(x)
        x = sdc(x, predicted[:, :36], predicted[:, 36:], groups=2, dilation=2, padding=2, offset_scale=1.5)
        x = deform_conv2d(x, predicted[:, :18], self.weight, self.bias, padding=1, mask=predicted[:, 36:45].sigmoid())
        return self.dcnv3(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    network = Network().eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network


@pytest.mark.parametrize(("opset", "node", "N"), [(22, "DeformConv", 1), (18, "GridSample", 2)])
def test_export_onnx_of_own_network(network, opset, node, N, tmp_path):
    """From an example of N images, for any number of images."""
    path = tmp_path / "network.onnx"
    export_onnx(network, torch.randn(N, 1, 12, 14), path, names=["features"], opset=opset)
    types = [each.op_type for each in onnx.load(path).graph.node]
    assert node in types and "danet" not in " ".join(types)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    images = torch.randn(3, 1, 17, 13)
    (out,) = session.run(None, {"images": images.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(out), network(images), rtol=1e-3, atol=1e-3)


class OtherOperators(nn.Module):
    """lcdc, softmax_gate, rep_conv, and ms_deform_attn on two levels whose sizes depend on the image."""

    def __init__(self, shapes_are_tensors: bool) -> None:
        super().__init__()
        self.shapes_are_tensors = shapes_are_tensors
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.down = nn.Conv2d(8, 8, 3, padding=1, stride=2)
        self.kernel = nn.Parameter(torch.randn(1, 3))
        self.prepared = prepare_rep_conv(0.3 * torch.randn(8, 8, 3, 3), stride=2)
        self.weight, self.bias = nn.Parameter(torch.randn(8, 8, 1, 1)), nn.Parameter(torch.randn(8))
        self.predictor = nn.Linear(8, 2 * 2 * 3 * 3)  # 2 heads, 2 levels, 3 points

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.stem(images)
        x = softmax_gate(lcdc(x, self.kernel, gate=True), x)
        x = rep_conv(rep_conv(x, self.prepared, stride=2), self.weight, self.bias, relu=False)
        maps = [x, self.down(x)]
        shapes, starts = [(each.shape[2], each.shape[3]) for each in maps], None
        if self.shapes_are_tensors:  # as in transformers
            shapes = torch.tensor(shapes)
            starts = torch.cat([shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]])
        value = torch.cat([each.flatten(2) for each in maps], 2).transpose(1, 2)
        predicted = self.predictor(value).unflatten(2, (2, 2, 3, 3))
        locations, logits = predicted[..., :2] + 0.5, predicted[..., 2]  # some are outside
        return ms_deform_attn(value.unflatten(2, (2, 4)), shapes, starts, locations, logits, softmax=True)


@pytest.mark.parametrize(("opset", "shapes_are_tensors"), [(22, False), (18, True)])
def test_export_onnx_of_the_other_operators(opset, shapes_are_tensors, tmp_path):
    torch.manual_seed(0)
    network, path = OtherOperators(shapes_are_tensors).eval(), tmp_path / "network.onnx"
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    export_onnx(network, torch.randn(2, 1, 12, 16), path, names=["features"], opset=opset)
    assert "GridSample" in [each.op_type for each in onnx.load(path).graph.node]
    images = torch.randn(3, 1, 20, 26)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (out,) = session.run(None, {"images": images.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(out), network(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_export_onnx_of_rep_conv_in_half_types(dtype, tmp_path):
    class Network(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return rep_conv(images.to(dtype), weight).float()

    weight, images = torch.randn(4, 1, 3, 3).to(dtype), torch.randn(3, 1, 20, 26)
    export_onnx(Network().eval(), torch.randn(2, 1, 12, 16), tmp_path / "network.onnx", names=["features"])
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx", providers=["CPUExecutionProvider"])
    (out,) = session.run(None, {"images": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(out), Network()(images), rtol=1e-2, atol=1e-2)


def test_torch_onnx_export_of_sdc(tmp_path):
    """torch's own exporter writes the module as it is."""
    module, input = SDC(8).eval(), torch.randn(1, 8, 6, 7)
    nn.init.normal_(module.predictor.weight)
    torch.onnx.export(module, (input,), tmp_path / "sdc.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "sdc.onnx", providers=["CPUExecutionProvider"])
    (out,) = session.run(None, {session.get_inputs()[0].name: input.numpy()})
    torch.testing.assert_close(torch.from_numpy(out), module(input), rtol=1e-3, atol=1e-4)


def test_deform_conv_that_the_runtime_lacks_is_an_error(tmp_path):
    """As in ONNX Runtime before version 1.25; here the kernel of one dtype is missing."""
    half = onnx.TensorProto.BFLOAT16
    sizes = {"X": (1, 1, 3, 3), "W": (1, 1, 1, 1), "offset": (1, 2, 3, 3), "Y": (1, 1, 3, 3)}
    *inputs, output = (onnx.helper.make_tensor_value_info(name, half, shape) for name, shape in sizes.items())
    node = onnx.helper.make_node("DeformConv", ["X", "W", "offset"], ["Y"], kernel_shape=[1, 1])
    graph = onnx.helper.make_graph([node], "deform_conv", inputs, [output])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 22)], ir_version=10)
    onnx.save(model, tmp_path / "half.onnx")
    with pytest.raises(UserError, match=r"cannot run it .*DeformConv.*; it needs onnxruntime 1\.25 or newer$"):
        open_session(tmp_path / "half.onnx")


def test_export_onnx_opset_error(network, tmp_path):
    with pytest.raises(ValueError, match="export_onnx: opset must be >= 18, got 16"):
        export_onnx(network, torch.randn(2, 1, 12, 14), tmp_path / "a.onnx", names=["features"], opset=16)
