"""Runs ONNX files of other detectors in ONNX Runtime and OpenVINO, to be timed beside the deployed network."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Function = Callable[[], object]


def parse_rival(text: str) -> tuple[str, Path]:
    """``NAME=FILE.onnx`` -> name and path, for argparse."""
    name, _, file = text.partition("=")
    if not name or not file.endswith(".onnx"):
        raise argparse.ArgumentTypeError(f"{text!r} must be NAME=FILE.onnx")
    if not Path(file).is_file():
        raise argparse.ArgumentTypeError(f"{file}: no such file")
    return name, Path(file)


def rival_functions(name: str, path: Path, size: tuple[int, int], batch: int, threads: int) -> dict[str, Function]:
    """Functions that each run the file once on an image batch of this size, in ONNX Runtime and OpenVINO if installed.

    OpenVINO gives two functions: with the dtype that it chooses itself, which is bfloat16 on some processors, and in
    float32.

    Args:
        name: of the rival, the beginning of the functions' names.
        path: the ONNX file, whose first input is an image batch ``[N, C, H, W]``.
        size: height and width; sizes that the file fixes must be equal to it.
        batch: images per call.
        threads: CPU threads.

    Returns:
        The functions, by names such as "NAME, ONNX Runtime" and "NAME, OpenVINO float32".

    Raises:
        SystemExit: no runtime is installed, or the first input of the file is no image batch or has another size.
    """
    runtimes = {"ONNX Runtime": _onnxruntime, "OpenVINO": _openvino, "OpenVINO float32": _openvino_float32}
    loaded = {f"{name}, {runtime}": load(path, size, batch, threads) for runtime, load in runtimes.items()}
    functions = {runtime: function for runtime, function in loaded.items() if function is not None}
    if not functions:
        raise SystemExit(f"benchmarks.detector: --rival {name}: install onnxruntime or openvino")
    return functions


def _image(path: Path, shape: list[Any], size: tuple[int, int], batch: int) -> np.ndarray:
    """A random image batch of the shape of a file's input; ``shape`` has no integer where the size is free."""
    wanted = [batch, None, *size]
    if len(shape) != 4:
        raise SystemExit(
            f"benchmarks.detector: {path}: its first input must be an image batch N x C x H x W, got {shape}"
        )
    for dimension, value in zip(shape, wanted, strict=True):
        if value is not None and isinstance(dimension, int) and dimension != value:
            raise SystemExit(
                f"benchmarks.detector: {path}: its input is {shape}, which does not fit "
                f"{batch} x C x {size[0]} x {size[1]}; export it for this size"
            )
    channels = shape[1] if isinstance(shape[1], int) else 3
    return np.random.default_rng(0).random((batch, channels, *size), np.float32)


def _onnxruntime(path: Path, size: tuple[int, int], batch: int, threads: int) -> Function | None:
    try:
        import onnxruntime
    except ImportError:
        return None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Threads that wait actively would slow the functions that are timed between the calls.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0]
    image = _image(path, given.shape, size, batch)
    return lambda: session.run(None, {given.name: image})


def _openvino(path: Path, size: tuple[int, int], batch: int, threads: int, **hints: str) -> Function | None:
    try:
        import openvino
    except ImportError:
        return None
    core = openvino.Core()
    model = core.read_model(path)
    shape = [d.get_length() if d.is_static else None for d in model.inputs[0].get_partial_shape()]
    image = _image(path, shape, size, batch)
    model.reshape({model.inputs[0]: image.shape})
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, **hints}
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    return lambda: request.infer([image])


def _openvino_float32(path: Path, size: tuple[int, int], batch: int, threads: int) -> Function | None:
    return _openvino(path, size, batch, threads, INFERENCE_PRECISION_HINT="f32")
