"""ONNX files of other detectors, for tests of the adapter; tests that import this module are skipped without onnx."""

import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def model(path, outputs, metadata=None, size=(64, 64), batch=1, channels=3):
    """An ONNX file whose outputs are the given arrays, whatever the images are."""
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["mean"], keepdims=0),
        helper.make_node("Cast", ["mean"], ["m64"], to=7),
    ]
    values, names = [], []
    for index, array in enumerate(outputs):
        name, kind = f"output{index}", helper.np_dtype_to_tensor_dtype(array.dtype)
        values.append(numpy_helper.from_array(array, f"value{index}"))
        nodes += [
            helper.make_node("Sub", ["m64", "m64"], [f"zero{index}"]),
            helper.make_node("Cast", [f"zero{index}"], [f"cast{index}"], to=kind),
            helper.make_node("Add", [f"value{index}", f"cast{index}"], [name]),
        ]
        names.append(helper.make_tensor_value_info(name, kind, array.shape))
    image = helper.make_tensor_value_info("images", 1, [batch, channels, *size])
    built = helper.make_model(
        helper.make_graph(nodes, "graph", [image], names, values), opset_imports=[helper.make_opsetid("", 17)]
    )
    built.ir_version = 9
    helper.set_model_props(built, metadata or {})
    onnx.save(built, path)
    return str(path)


def detect(adapter, *paths):
    """The detections of an adapter in the images of some files."""
    return adapter.postprocess(*adapter.forward(*adapter.preprocess(paths)))
