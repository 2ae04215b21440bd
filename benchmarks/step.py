"""Compares training steps with compiled operators and with reference operators, in float32 and in mixed precision:
python -m benchmarks.step.

In mixed precision, the network runs under autocast in bfloat16, as `danet train --amp bfloat16` does.
"""

import argparse
import json
import sys
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch

from benchmarks.timing import alternate, header, track
from danet.config import ModelConfig
from danet.data.loader import Batch
from danet.losses import DetectionLoss
from danet.models import build_model
from danet.ops import info, library


@contextmanager
def references():
    """Replaces every operator by its PyTorch reference."""
    with mock.patch.object(library, "has_kernel", lambda tensor: False):
        yield


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=__doc__)
    parser.add_argument("--model", default="danet_s", choices=("danet", "danet_s", "danet_nano"))
    parser.add_argument("--batch", type=int, default=8, help="frames per step, 8 by default")
    parser.add_argument("--size", type=int, nargs=2, default=(256, 320), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--threads", type=int, default=2, help="CPU threads, 2 by default")
    parser.add_argument("--steps", type=int, default=10, help="timed steps of each variant, 10 by default")
    parser.add_argument("--json", type=Path, help="write the measured times to this JSON file")
    parser.add_argument("--quiet", action="store_true", help="print only errors")
    options = parser.parse_args(arguments)
    if info()["operators"] != "compiled":
        raise SystemExit(f"benchmarks.step: needs the compiled operators ({info()['why']})")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    model = build_model(ModelConfig(name=options.model)).to(memory_format=torch.channels_last).train()
    loss = DetectionLoss(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    images = torch.randn(options.batch, 1, *options.size).to(memory_format=torch.channels_last)
    boxes = torch.tensor([[100.0, 80.0, 116.0, 92.0], [30.0, 40.0, 42.0, 50.0]])
    per_image = (boxes, torch.zeros(2, dtype=torch.long), torch.zeros(2, dtype=torch.bool))
    batch = Batch(images, *([each] * options.batch for each in per_image))

    def step(is_mixed: bool = False) -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=is_mixed):
            output = model(images)
        sum(loss(output, batch).values()).backward()
        optimizer.step()

    def mixed_step() -> None:
        step(is_mixed=True)

    def reference_step() -> None:
        with references():
            step()

    functions = {"compiled": step, "reference": reference_step, "compiled, bfloat16": mixed_step}
    turns = track(range(options.steps), quiet=options.quiet)
    times = alternate(functions, repetitions=options.steps, seconds=0, turns=turns)
    turns.close()
    ratios = {name: seconds / times["compiled"] for name, seconds in times.items()}
    facts = header()
    if not options.quiet:
        print(", ".join(f"{name} {value}" for name, value in facts.items()))
        print(
            f"training step of {options.model}, {options.batch} frames of {options.size[0]}x{options.size[1]}: "
            f"{times['compiled']:.3f} s; with reference operators {times['reference']:.3f} s, "
            f"{ratios['reference']:.2f} times as long; in bfloat16 {times['compiled, bfloat16']:.3f} s, "
            f"{1 / ratios['compiled, bfloat16']:.2f} times as fast"
        )
    if options.json is not None:
        content = {"machine": facts, "options": {k: str(v) for k, v in vars(options).items()}, "seconds": times}
        options.json.write_text(json.dumps({**content, "seconds_over_compiled": ratios}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
