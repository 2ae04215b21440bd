"""The exported network computes in another runtime what it computes in PyTorch."""

import pytest
import torch
from helpers import randomise_norms

from danet.config import ModelConfig
from danet.export import Predictions, export_onnx
from danet.models import build_model

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.mark.parametrize("options", [{}, {"head": "paper", "acfa": False, "classes": ["drone", "bird"]}])
@pytest.mark.filterwarnings("ignore:`isinstance:FutureWarning", "ignore::DeprecationWarning")
def test_onnx_of_any_batch_and_size(tmp_path, options):
    torch.manual_seed(0)
    model = build_model(ModelConfig(name="danet_nano", **options)).eval()
    randomise_norms(model)
    for name, parameter in model.named_parameters():
        if "predictor" in name or "ffn.2" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    network = Predictions(model).eval()
    path = tmp_path / "network.onnx"
    names = [f"{kind}{level}" for kind in ("logits", "deltas") for level in range(4)]
    export_onnx(network, torch.randn(2, 1, 64, 96), path, names=names)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == names
    for shape in ((2, 1, 64, 96), (1, 1, 96, 64), (3, 1, 128, 160)):
        images = torch.randn(shape)
        with torch.no_grad():
            expected = network(images)
        for result, plain in zip(session.run(None, {"images": images.numpy()}), expected, strict=True):
            torch.testing.assert_close(torch.from_numpy(result), plain, rtol=1e-3, atol=1e-4)
