"""Compares training steps of a student with and without distillation: python -m benchmarks.distill."""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch

from benchmarks.timing import header, track
from danet.config import ModelConfig
from danet.data.loader import Batch
from danet.data.scales import SCALES
from danet.distill import Distiller, Teacher
from danet.losses import DetectionLoss
from danet.models import build_model
from danet.models.summary import describe

MODELS = ("danet", "danet_s", "danet_nano")
SIDES = {"small": 10.0, "medium": 16.0, "large": 30.0}
"""Side of a target of each scale in pixels."""


def make_batch(options: argparse.Namespace, scales: list[tuple[str, ...]]) -> Batch:
    """One image for each element of ``scales``, with a square target of each scale in it."""
    boxes = [
        torch.tensor([[40.0, 10.0 + 32 * i, 40.0 + SIDES[s], 10.0 + 32 * i + SIDES[s]] for i, s in enumerate(image)])
        for image in scales
    ]
    images = torch.randn(len(scales), 1, *options.size).to(memory_format=torch.channels_last)
    return Batch(
        images,
        boxes,
        [torch.zeros(len(b), dtype=torch.long) for b in boxes],
        [torch.zeros(len(b), dtype=torch.bool) for b in boxes],
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.distill", description=__doc__)
    parser.add_argument("--model", default="danet_s", choices=MODELS, help="the student, danet_s by default")
    teachers = [*MODELS, *(f"teacher_{scale}" for scale in SCALES)]
    parser.add_argument(
        "--teachers",
        nargs=3,
        choices=teachers,
        metavar=("SMALL", "MEDIUM", "LARGE"),
        help="default: the model of the student",
    )
    parser.add_argument("--batch", type=int, default=4, help="frames per step, 4 by default (section 4.2)")
    parser.add_argument("--size", type=int, nargs=2, default=(256, 320), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--threads", type=int, default=1, help="CPU threads, 1 by default")
    parser.add_argument("--steps", type=int, default=10, help="timed steps of each variant, 10 by default")
    parser.add_argument("--json", type=Path, help="write the measured times to this JSON file")
    parser.add_argument("--quiet", action="store_true", help="print only errors")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    model = build_model(ModelConfig(name=options.model)).to(memory_format=torch.channels_last).train()
    names = dict(zip(SCALES, options.teachers or [options.model] * 3, strict=True))
    networks = {scale: build_model(ModelConfig(name=name)) for scale, name in names.items()}
    distiller = Distiller(
        model.widths, {scale: Teacher(n.to(memory_format=torch.channels_last)) for scale, n in networks.items()}
    ).to(memory_format=torch.channels_last)
    loss = DetectionLoss(model)
    optimizer = torch.optim.AdamW([*model.parameters(), *distiller.parameters()], lr=1e-4)

    def step(batch: Batch, *, distilled: bool) -> None:
        optimizer.zero_grad(set_to_none=True)
        output = model(batch.images)
        terms = loss(output, batch)
        if distilled:
            terms |= distiller(output, batch)
        sum(terms.values()).backward()
        optimizer.step()

    # Approximate the proportions of small, medium and large targets in the paper, 43 : 35 : 22 (section 4.1).
    mixed = [("small", "medium", "small", "large")[i % 4 : i % 4 + 1] for i in range(options.batch)]
    batches = {
        "plain": mixed,
        "each image one scale": mixed,
        "all images small": [("small",)] * options.batch,
        "each image two scales": [("small", "medium") if i % 2 else ("medium", "large") for i in range(options.batch)],
        "each image all scales": [SCALES] * options.batch,
    }
    functions = {name: make_batch(options, scales) for name, scales in batches.items()}
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in track(range(options.steps + 1), quiet=options.quiet):  # the first turn is a warm-up
        for name, batch in functions.items():
            started = time.perf_counter()
            step(batch, distilled=name != "plain")
            if turn:
                times[name].append(time.perf_counter() - started)
    seconds = {name: statistics.median(values) for name, values in times.items()}

    facts = header()
    if options.json is not None:
        content = {"machine": facts, "options": {k: str(v) for k, v in vars(options).items()}, "seconds": times}
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    if options.quiet:
        return 0
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    print(f"student {describe(model, tuple(options.size))}")
    for scale, network in networks.items():
        print(f"{scale} {describe(network, tuple(options.size))}")
    parameters = sum(p.numel() for p in distiller.parameters()) / 1e6
    print(f"EADMs {parameters:.2f} M parameters; {options.batch} frames of {options.size[0]}x{options.size[1]}")
    for name, value in seconds.items():
        print(f"{name:24} {value:.3f} s  {value / seconds['plain']:.2f}x")
    return 0


if __name__ == "__main__":
    sys.exit(main())
