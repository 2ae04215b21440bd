"""Trains a YOLO of Ultralytics from scratch within a budget, and exports it as ONNX.

    python experiments/rivals/ultralytics_yolo.py MODEL.yaml DATA.yaml OUT (--minutes M | --steps N)

Runs in an environment with the packages ultralytics and onnx, which stay tools: DANet does not import them. An
interrupted run continues from its last epoch when it is started again; the time of an epoch that was not finished is
lost. Times are processor times of this process, so that they do not depend on what else runs on the machine. Writes
OUT/model.onnx and OUT/summary.json.
"""

import argparse
import json
import math
import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import yaml


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="network of Ultralytics, such as yolo11n.yaml, yolo26n.yaml, yolo26n-p2.yaml")
    parser.add_argument("data", type=Path, help="data.yaml of yolo_dataset.py")
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, help="processor time of training and validation, over all parts")
    parser.add_argument("--steps", type=int, help="training steps, to try the script")
    parser.add_argument("--patience", type=int, default=100, help="epochs without improvement after which to stop")
    parser.add_argument("--imgsz", type=int, default=320, help="size of the training images")
    parser.add_argument("--export_size", type=int, nargs=2, default=[256, 320], help="height, width of the ONNX file")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if (arguments.minutes is None) == (arguments.steps is None):
        parser.error("give one of --minutes and --steps")
    return arguments


def few_validation_images(data: Path, out: Path) -> Path:
    """A copy of data.yaml that validates on eight images only, to try the script."""
    config = yaml.safe_load(data.read_text())
    names = sorted((data.parent / "images" / "val").iterdir())
    listed = out / "few_images.txt"
    listed.write_text("".join(f"{path.absolute()}\n" for path in names[:8]))
    copy = out / "few_images.yaml"
    copy.write_text(yaml.safe_dump(config | {"val": str(listed)}))
    return copy


def main() -> None:
    arguments = parse()
    out = arguments.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("YOLO_CONFIG_DIR", str(out))  # Ultralytics writes settings there
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    import torch
    from ultralytics import YOLO, __version__, settings
    from ultralytics.engine import trainer

    trainer.time = SimpleNamespace(**{**vars(time), "time": time.process_time})  # its clock for the budget
    settings.update({"sync": False})  # no reports to its servers
    torch.set_num_threads(arguments.threads)

    # The times of all finished epochs, because Ultralytics counts anew after an interruption.
    clock_file = out / "clock.json"
    clock = json.loads(clock_file.read_text()) if clock_file.exists() else {"seconds": 0.0, "steps": 0}
    started, steps = time.process_time(), 0

    def count_step(_: object) -> None:
        nonlocal steps
        steps += 1

    def save_clock(_: object) -> None:
        now = {"seconds": clock["seconds"] + time.process_time() - started, "steps": clock["steps"] + steps}
        clock_file.write_text(json.dumps(now))

    last = out / "run" / "weights" / "last.pt"
    options = {
        "data": str(arguments.data.absolute()), "imgsz": arguments.imgsz, "batch": arguments.batch, "device": "cpu",
        "workers": 0, "project": str(out), "name": "run", "exist_ok": True, "plots": False, "verbose": False,
        "seed": arguments.seed, "pretrained": False, "amp": False, "patience": arguments.patience,
    }  # fmt: skip
    if arguments.minutes is not None:
        left = arguments.minutes * 60 - clock["seconds"]
        options["time"] = max(left, 0) / 3600
    else:
        images = sum(1 for _ in (arguments.data.parent / "images" / "train").iterdir())
        per_epoch = math.ceil(images / arguments.batch)
        options["epochs"] = math.ceil(arguments.steps / per_epoch)
        options["fraction"] = min(1.0, (arguments.steps * arguments.batch - 0.5) / images)
        options["data"] = str(few_validation_images(arguments.data, out))
        left = arguments.steps - clock["steps"]
    is_resumed = last.exists()
    if left > 0:
        model = YOLO(str(last) if is_resumed else arguments.model)
        model.add_callback("on_train_batch_end", count_step)
        model.add_callback("on_fit_epoch_end", save_clock)
        model.train(resume=str(last) if is_resumed else False, **options)
        save_clock(None)

    weights = out / "run" / "weights" / "best.pt"
    if not weights.exists():
        weights = last
    best = YOLO(str(weights))
    exported = best.export(format="onnx", imgsz=tuple(arguments.export_size), simplify=False, opset=17)
    shutil.move(exported, out / "model.onnx")
    parameters = sum(parameter.numel() for parameter in best.model.parameters())
    summary = {**json.loads(clock_file.read_text()), "parameters": parameters, "model": arguments.model}
    summary |= {"ultralytics": __version__, "torch": torch.__version__, "threads": arguments.threads}
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")


if __name__ == "__main__":
    main()
