"""Measures the deployed detector, network alone and video to video: ``python -m benchmarks.detector [options]``."""

import argparse
import copy
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.rivals import parse_rival, rival_functions
from benchmarks.timing import ceilings, header, silent
from danet.checkpoint import load_weights
from danet.config import ModelConfig
from danet.models import DANet, build_model
from danet.models.blocks import FusedMBB
from danet.models.fuse import FusedACFA, FusedSaFEM
from danet.models.graphs import CudaGraphs
from danet.models.summary import count_flops
from danet.ops import info
from danet.ops.common import dtype_name
from danet.utils.shipped_weights import find_weights, shipped_names

Function = Callable[[], object]


def plain(model: DANet) -> nn.Module:
    """The fused network with torch's own convolutions, as other compilers and runtimes receive it."""

    def replace(parent: nn.Module) -> None:
        for name, child in parent.named_children():
            if isinstance(child, FusedMBB):
                C_out, C = child.weight.shape[:2]
                conv = nn.Conv2d(C, C_out, 3, child.stride, 1)
                conv.load_state_dict({"weight": child.weight, "bias": child.bias})
                setattr(parent, name, nn.Sequential(conv, nn.ReLU()))
            else:
                replace(child)

    network = model.fused()
    replace(network)
    return network.to(memory_format=torch.channels_last).requires_grad_(False)


def compiled(model: DANet) -> nn.Module:
    """``torch.compile`` of the plain network with max-autotune and frozen weights."""
    return torch.compile(plain(model), dynamic=False, options={"max_autotune": True, "freezing": True})


def onnxruntime_session(model: DANet, images: Tensor) -> Function | None:
    """ONNX Runtime on the same network exported to standard nodes; None if ONNX Runtime is not installed."""
    try:
        import onnxruntime

        from danet.export import Predictions, export_onnx

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "network.onnx"
            names = [f"{kind}{level}" for kind in ("logits", "deltas") for level in range(4)]
            # Trace with a batch of two: torch.export treats a size of one as constant.
            example = torch.randn(2, *images.shape[1:])
            export_onnx(Predictions(model).eval(), example, path, names=names)
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            options.add_session_config_entry(
                "session.intra_op.allow_spinning", "0"
            )  # spinning threads would slow the other functions
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except ImportError:
        return None
    array = images.numpy()
    return lambda: session.run(None, {"images": array})


def alternate(functions: dict[str, Function], *, calls: int, synchronize: Function) -> dict[str, list[float]]:
    """Seconds of each of ``calls`` calls. The functions alternate: two untimed calls, then five timed ones."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    while len(next(iter(times.values()))) < calls:
        for name, function in functions.items():
            for timed in (False, False, True, True, True, True, True):
                started = time.perf_counter()
                function()
                synchronize()
                if timed:
                    times[name].append(time.perf_counter() - started)
    return times


def network_only(model: DANet, size: tuple[int, int], batch: int, options: argparse.Namespace) -> dict:
    """Milliseconds per call of each function (50th, 95th and 99th percentile) and ratios of the medians."""
    device = torch.device(options.device)
    images = torch.randn(batch, model.config.network_channels, *size, device=device)
    dtype = options.dtype if options.dtype == "auto" else getattr(torch, options.dtype)
    deployed = model.deploy(dtype=dtype, device=device)
    dtype = deployed.dtype  # also of the baselines
    eager = copy.deepcopy(model).to(device=device, dtype=dtype)
    inputs = images.to(dtype).contiguous(memory_format=torch.channels_last)
    functions: dict[str, Function] = {"deployed": lambda: deployed(images), "eager": lambda: eager(inputs)}
    if deployed.dtype != torch.float32:
        in_float32 = model.deploy(dtype=torch.float32, device=device)
        functions["deployed float32"] = lambda: in_float32(images)
    if device.type == "cuda":
        graphs = CudaGraphs(eager)
        functions["eager, CUDA graph"] = lambda: graphs(inputs)
    if "compile" in options.baselines:
        network = compiled(model).to(device=device, dtype=dtype)
        functions["torch.compile"] = lambda: network(inputs)
    if "onnxruntime" in options.baselines and device.type == "cpu":
        session = onnxruntime_session(model, images)
        if session is not None:
            functions["onnxruntime"] = session
    for rival in options.rival:
        functions.update(rival_functions(*rival, size, batch, options.threads))
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    if device.type == "cpu":
        # Measure the matrix product between the networks: a processor slows down under sustained load.
        square = torch.ones(1536, 1536)
        functions["product"] = lambda: square @ square
    with torch.inference_mode():
        for function in functions.values():
            for _ in range(3):
                function()
        times = alternate(functions, calls=options.calls, synchronize=synchronize)
    product = times.pop("product", None)
    milliseconds = {
        name: {f"p{p}": 1e3 * float(np.percentile(values, p)) for p in (50, 95, 99)} for name, values in times.items()
    }
    ours = milliseconds["deployed"]["p50"]
    return {
        "dtype": dtype_name(deployed.dtype),
        "dtype_reason": deployed.dtype_reason,
        "peak_GFLOP/s": product and 2 * 1536**3 / statistics.median(product) / 1e9,
        "milliseconds": milliseconds,
        "frames_per_second": 1e3 * batch / ours,
        "times_as_fast_as": {name: each["p50"] / ours for name, each in milliseconds.items() if name != "deployed"},
    }


def has_weights(name: str, device: str) -> bool:
    """Whether a network is measured with the pretrained weights of its name.

    Networks without them have random weights, and so have all networks on CUDA devices, because the package that reads
    weights files may be missing there. Random networks magnify the rounding errors of bfloat16, which ``auto`` rejects.
    """
    return device == "cpu" and name in shipped_names()


def network_named(name: str, device: str) -> tuple[DANet, dict]:
    """The network and the metadata of its weights."""
    if has_weights(name, device):
        model, metadata = load_weights(find_weights(name))
        return model.eval(), metadata
    return build_model(ModelConfig(name=name)).eval(), {}


def end_to_end(
    model: DANet, metadata: dict, size: tuple[int, int], dtype: str, options: argparse.Namespace, *, is_random: bool
) -> dict:
    """Frames per second of ``danet detect`` on a synthetic video (reading, drawing and writing included) and of the
    network alone.

    The class scores of random networks are forced below the threshold, as for a clear sky. With ``--polarity white``
    every frame is computed once; with the default, ``auto``, some frames without a target are computed inverted, too.
    """
    # Imported here: the network alone needs no video and no image library.
    from danet.data.frame_sources import open_source
    from danet.data.synthetic.clip import write_video
    from danet.inference.annotated_output import AnnotatedOutput
    from danet.inference.box_files import BoxFiles
    from danet.inference.detector import Detector
    from danet.inference.stream import DetectionStream
    from danet.utils.image_io import quiet_opencv

    quiet_opencv()  # as the commands do
    model, frames = copy.deepcopy(model), options.frames
    if is_random:
        for tower in model.head.classify:
            nn.init.zeros_(tower[-1].weight)
    model = model.to(options.device)
    detectors = {
        polarity: Detector(model, dtype=getattr(torch, dtype), polarity=polarity) for polarity in ("white", "auto")
    }
    image = torch.zeros(1, model.config.network_channels, *size, device=options.device)

    def run_network() -> None:
        with torch.inference_mode():
            for _ in range(frames):
                detectors["white"].model(image)
            if image.is_cuda:
                torch.cuda.synchronize()

    def run_command(detector: Detector, clip: Path, out: Path) -> None:
        source, stream = open_source(clip), DetectionStream(detector)
        output = AnnotatedOutput(detector.classes, background=stream.has_free_core)
        boxes = BoxFiles(out / "boxes.csv", out / "boxes.json", {}, detector.classes)
        with boxes, output.open(source, [out / "clip.mp4"]) as write:
            for frame, detections in stream.run(source):
                boxes.add(frame, detections)
                write(frame, detections)

    with tempfile.TemporaryDirectory() as folder:
        write_video(Path(folder), [0], frames, size, 8, True)
        clip, out = Path(folder) / "video.mp4", Path(folder) / "out"
        out.mkdir()
        functions: dict[str, Function] = {
            "network": run_network,
            "white": lambda: run_command(detectors["white"], clip, out),
            "auto": lambda: run_command(detectors["auto"], clip, out),
        }
        rates: dict[str, list[float]] = defaultdict(list)
        for repeat in range(4):
            for name, function in functions.items():
                started = time.perf_counter()
                function()
                if repeat > 0:  # the first warms up
                    rates[name].append(frames / (time.perf_counter() - started))
    network, white, auto = (statistics.median(rates[name]) for name in functions)
    return {
        "frames_per_second": white,
        "frames_per_second_polarity_auto": auto,
        "network_frames_per_second": network,
        "share": white / network,
        "share_polarity_auto": auto / network,
    }


MEMORY = """
import resource, sys
from pathlib import Path
import torch
from danet.config import ModelConfig
from danet.models import build_model

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

torch.set_num_threads(int(sys.argv[4]))
torch.nn.functional.conv2d(torch.zeros(1, 8, 8, 8), torch.zeros(8, 8, 3, 3))
python = resident()
model = build_model(ModelConfig(name=sys.argv[1]))
weights = sum(t.nbytes for t in model.state_dict().values())
network = model.deploy(dtype=getattr(torch, sys.argv[5]))
del model
image = torch.zeros(1, 1, int(sys.argv[2]), int(sys.argv[3]))
with torch.inference_mode():
    for _ in range(20):
        network(image)
print(resident() - python - weights)
"""


def memory(name: str, size: tuple[int, int], threads: int, dtype: str) -> float | None:
    """Resident memory in MiB of a process that runs the network, minus Python with torch and minus the weights."""
    if not Path("/proc/self/statm").exists():
        return None
    command = [sys.executable, "-c", MEMORY, name, *map(str, size), str(threads), dtype]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) / 2**20


def layers(model: DANet, size: tuple[int, int], peak: float, dtype: str) -> list[dict]:
    """Time, FLOP and fraction of the matmul rate (``peak``, GFLOP/s) of every layer of the deployed network."""
    network = model.deploy(dtype=getattr(torch, dtype)).network
    started, seconds = {}, defaultdict(list)
    for name, module in network.named_modules():
        if isinstance(module, (FusedMBB, FusedSaFEM, FusedACFA)):
            module.register_forward_pre_hook(lambda m, x, n=name: started.update({n: time.perf_counter()}))
            module.register_forward_hook(lambda m, x, y, n=name: seconds[n].append(time.perf_counter() - started[n]))
    image = torch.randn(1, model.config.network_channels, *size)
    with torch.inference_mode():
        for _ in range(40):
            network(image)
        times = {name: statistics.median(values) for name, values in seconds.items()}
        with FlopCounterMode(display=False) as counter:
            network(image)
    counts = {name.removeprefix("DANet."): sum(each.values()) for name, each in counter.get_flop_counts().items()}
    rows = []
    for name, time_of_it in times.items():
        flops = counts.get(name, 0)
        speed = flops / time_of_it / 1e9
        rows.append({"layer": name, "milliseconds": 1e3 * time_of_it, "MFLOP": flops / 1e6, "times_peak": speed / peak})
    return rows


def plot(results: list[dict], path: Path, title: str) -> None:
    """Draws a bar chart of milliseconds per call, one group of bars per case."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(name for case in results for name in case["milliseconds"]))
    figure, axes = plt.subplots(figsize=(8, 0.8 + 0.28 * sum(len(case["milliseconds"]) + 0.6 for case in results)))
    y, ticks = 0.0, []
    for case in reversed(results):
        ticks.append((y + (len(case["milliseconds"]) - 1) / 2, case["case"]))
        for name, times in reversed(case["milliseconds"].items()):
            axes.barh(y, times["p50"], color=f"C{names.index(name)}")
            axes.plot([times["p50"], times["p99"]], [y, y], color="black", linewidth=1)
            axes.annotate(f"  {times['p50']:.1f}", (times["p99"], y), va="center", fontsize=7)
            y += 1
        y += 0.6
    axes.set_yticks([t for t, _ in ticks], [text for _, text in ticks], fontsize=8)
    axes.set_xlabel("milliseconds per call: median (bar) to 99th percentile (line)")
    axes.set_title(title, fontsize=9, pad=8)
    axes.margins(x=0.12, y=0.01)
    figure.tight_layout(rect=(0, 0, 1, 0.93))
    colours = [plt.Rectangle((0, 0), 1, 1, color=f"C{i}") for i in range(len(names))]
    figure.legend(colours, names, loc="upper center", ncols=len(names), fontsize=8, frameon=False)
    figure.savefig(path, dpi=120)


def size_of(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal() and min(int(height), int(width)) >= 32):
        raise argparse.ArgumentTypeError(f"{text!r} must be HEIGHTxWIDTH, at least 32x32")
    return int(height), int(width)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.detector", description=__doc__)
    parser.add_argument("--models", nargs="+", default=["danet", "danet_s"], choices=("danet", "danet_s", "danet_nano"))
    parser.add_argument("--weights", type=Path, help="measure this trained network instead of --models")
    parser.add_argument("--sizes", nargs="+", type=size_of, default=[(256, 320)], metavar="HEIGHTxWIDTH")
    parser.add_argument("--batch", nargs="+", type=int, default=[1], help="images per call")
    parser.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="dtype of the deployed network; auto is bfloat16 on Intel CPUs with AMX and AMD CPUs with AVX512_BF16 "
        "if it is faster and its detections agree with those of float32, otherwise float32 (default: auto)",
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--calls", type=int, default=60, help="timed calls per function (default: 60)")
    parser.add_argument(
        "--baselines",
        nargs="*",
        default=["compile", "onnxruntime"],
        choices=("compile", "onnxruntime"),
        help="baselines beside the eager network (default: both)",
    )
    parser.add_argument(
        "--rival",
        type=parse_rival,
        action="append",
        default=[],
        metavar="NAME=FILE.onnx",
        help="an ONNX file of another detector, run in ONNX Runtime and OpenVINO if installed; may be repeated",
    )
    parser.add_argument(
        "--frames",
        type=int,
        help="frames of the video for the video-to-video measurement; 0 skips it (default: 200, on CUDA 0)",
    )
    parser.add_argument("--layers", action="store_true", help="also print the time of every layer")
    parser.add_argument("--json", type=Path, help="write the raw results to this file")
    parser.add_argument("--plot", type=Path, help="write a bar chart to this file (.png)")
    parser.add_argument("--quiet", action="store_true", help="print only errors")
    options = parser.parse_args(arguments)
    say = silent if options.quiet else print
    for path in (options.json, options.plot):
        if path is not None and not path.parent.is_dir():
            parser.error(f"{path}: no such folder")
    if min(options.threads, options.calls, *options.batch) < 1:
        parser.error("--threads, --calls and --batch must be at least 1")
    if info()["operators"] != "compiled":
        raise SystemExit(f"benchmarks.detector: the compiled operators are missing: {info()['why']}")
    if len({name for name, _ in options.rival}) < len(options.rival):
        parser.error("--rival: the names must differ")
    if options.rival and options.device != "cpu":
        parser.error("--rival: only with --device cpu")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("benchmarks.detector: --device cuda: no CUDA device")
    if options.frames is None:
        options.frames = 0 if options.device == "cuda" else 200
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    facts, ceiling = header(), ceilings()
    if options.device == "cuda":
        facts["gpu"] = torch.cuda.get_device_name()
    say(", ".join(f"{name} {value}" for name, value in facts.items()))
    say(f"machine: copy bandwidth {ceiling['GB/s']:.1f} GB/s, matrix product {ceiling['GFLOP/s']:.0f} GFLOP/s")
    results = []
    if options.weights is not None:
        models = {options.weights.name: load_weights(options.weights)}
    else:
        models = {name: network_named(name, options.device) for name in options.models}
    for name, (model, metadata) in models.items():
        for size in options.sizes:
            flops = count_flops(model.cpu(), size)
            for batch in options.batch:
                case = {"case": f"{name} {batch}x{size[0]}x{size[1]}", "GFLOP": batch * flops / 1e9}
                case.update(network_only(model, size, batch, options))
                say(f"\n{case['case']}, {case['GFLOP']:.2f} GFLOP", end="")
                if options.device == "cpu":
                    speed = case["GFLOP"] / case["milliseconds"]["deployed"]["p50"] * 1e3
                    case["times_peak"] = speed / case["peak_GFLOP/s"]
                    say(", {times_peak:.2f} times the matmul rate of {peak_GFLOP/s:.0f} GFLOP/s".format(**case), end="")
                say(f"\n  deployed in {case['dtype']}" + (f": {case['dtype_reason']}" if case["dtype_reason"] else ""))
                width = max(18, *(len(kind) for kind in case["milliseconds"]))
                for kind, times in case["milliseconds"].items():
                    ratio = case["times_as_fast_as"].get(kind)
                    say(
                        f"  {kind:<{width}}"
                        + "".join(f"  {p} {ms:8.2f} ms" for p, ms in times.items())
                        + (f"   deployed is {ratio:.2f}x as fast" if ratio else f"   {case['frames_per_second']:.1f}/s")
                    )
                if batch == 1 and options.device == "cpu":
                    case["resident_MB"] = memory(model.config.name, size, options.threads, case["dtype"])
                    if case["resident_MB"] is not None:
                        say(f"  resident memory beyond weights and Python: {case['resident_MB']:.0f} MB")
                if batch == 1 and options.frames:
                    is_random = options.weights is None and not has_weights(name, options.device)
                    case["end_to_end"] = end_to_end(model, metadata, size, case["dtype"], options, is_random=is_random)
                    say(
                        "  danet.detect on a video: {frames_per_second:.1f} frames/s, {share:.0%} of the network alone "
                        "({network_frames_per_second:.1f}); with --polarity auto {share_polarity_auto:.0%}".format(
                            **case["end_to_end"]
                        )
                    )
                if batch == 1 and options.layers and options.device == "cpu":
                    case["layers"] = layers(model, size, case["peak_GFLOP/s"], case["dtype"])
                    say(f"  {'layer':<32}{'ms':>8}{'MFLOP':>9}{'x matmul rate':>15}")
                    for row in case["layers"]:
                        values = f"{row['milliseconds']:8.3f}{row['MFLOP']:9.1f}{row['times_peak']:15.2f}"
                        say(f"  {row['layer']:<32}{values}")
                results.append(case)
                if options.json is not None:  # after every case, so that nothing is lost if the run is cut off
                    shown = {"device": options.device, "dtype": options.dtype, "calls": options.calls}
                    content = {"machine": {**facts, **shown}, "ceilings": ceiling, "cases": results}
                    options.json.write_text(json.dumps(content, indent=1) + "\n")
    if options.plot is not None:
        machine = facts.get("gpu") or f"{facts['cpu']}, {facts['threads']} threads"
        plot(results, options.plot, f"{machine}, {options.dtype}, torch {facts['torch']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
