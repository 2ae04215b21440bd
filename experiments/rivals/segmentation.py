"""Trains a published segmentation network on boxes within a budget, and writes its detections as COCO results.

    python experiments/rivals/segmentation.py acm SOURCE DATA OUT --classes drone (--minutes M | --steps N)

SOURCE is a checkout of BasicIRSTD (github.com/XinyiYing/BasicIRSTD), a collection of networks for small infrared
targets; nothing of it is part of DANet. DATA holds fit.json, tune.json and val.json. The network learns one mask per
class: the ellipse in each box, or a mask of the image from --masks. Training follows BasicIRSTD: soft IoU loss, Adam,
random crops and flips. A detection is a connected component of a mask; its score is the highest probability in it.

An interrupted run continues from its last saved state when it is started again. Runs in an environment with torch,
torchvision and onnx. Writes OUT/tune_results.json, OUT/val_results.json, OUT/model.onnx and OUT/summary.json.
"""

import argparse
import importlib
import sys
import time
import types
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from danet.boxes import Detections
from danet.data.coco_dataset import CocoDataset, ImageRecord, load_coco
from danet.data.image_selection import select_images
from danet.data.normalize import normalize
from danet.inference.coco_results import to_coco_results
from danet.utils.files import write_json
from danet.utils.image_io import read_image

# Module and class of each network in BasicIRSTD, and the name of its argument for the number of classes.
NETWORKS = {
    "acm": ("model.ACM.model_ACM", "ASKCResUNet", "classes"),
    "alcnet": ("model.ACM.model_ALCnet", "ASKCResNetFPN", "classes"),
    "dnanet": ("model.DNANet.model_DNANet", "DNANet", "num_classes"),
}
THRESHOLDS = (0.5, 0.1)
"""Probabilities at which components are taken; those of the lower one count where the higher one has none."""
MIN_SIZE_PIXELS = 2
SAVE_INTERVAL_S = 120
MULTIPLE = 32
"""Networks need heights and widths that are a multiple of this."""


def build(name: str, source: Path, classes: int) -> nn.Module:
    """Imports a network from a checkout; only its own module is imported, because others need compiled packages."""
    module, attribute, argument = NETWORKS[name]
    package = types.ModuleType("model")
    package.__path__ = [str(source / "model")]
    sys.modules["model"] = package
    network = getattr(importlib.import_module(module), attribute)(**{argument: classes})
    if hasattr(network, "mode"):  # in this mode DNANet returns the masks of all its levels, which are all trained
        network.mode = "train"
    return network


def make_mask(record: ImageRecord, classes: Sequence[str], masks: Path | None) -> np.ndarray:
    """The mask of each class, float32 ``[C, H, W]``: an ellipse in each box, or the file of ``masks``."""
    result = np.zeros((len(classes), record.height, record.width), np.float32)
    if masks is not None:
        result[0] = read_image(masks / f"{record.path.stem}_pixels0.png").reshape(record.height, record.width) > 0
        return result
    for (x0, y0, x1, y1), name, ignore in zip(record.boxes.tolist(), record.names, record.ignore, strict=True):
        if name in classes and not ignore:
            rows, columns = np.ogrid[: record.height, : record.width]
            radii = max(x1 - x0, 1) / 2, max(y1 - y0, 1) / 2
            x, y = (columns + 0.5 - (x0 + x1) / 2) / radii[0], (rows + 0.5 - (y0 + y1) / 2) / radii[1]
            result[classes.index(name)][x * x + y * y <= 1] = 1
    return result


def sample(
    data: CocoDataset, rng: np.random.Generator, batch: int, crop: int, classes: Sequence[str], masks: Path | None
) -> tuple[Tensor, Tensor]:
    """Random crops with flips, and their masks: ``[N, 1, S, S]`` and ``[N, C, S, S]``."""
    images, targets = [], []
    for index in rng.integers(len(data.records), size=batch):
        record = data.records[index]
        both = np.concatenate([normalize(read_image(record.path)), make_mask(record, classes, masks)])
        pad = [(0, 0), *((0, max(crop - side, 0)) for side in both.shape[1:])]
        both = np.pad(both, pad)
        y, x = (int(rng.integers(side - crop + 1)) for side in both.shape[1:])
        both = both[:, y : y + crop, x : x + crop]
        for axis in (1, 2):
            both = np.flip(both, axis) if rng.random() < 0.5 else both
        images.append(both[:1])
        targets.append(both[1:])
    return torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(targets))


def soft_iou_loss(predicted: Tensor | Sequence[Tensor], target: Tensor) -> Tensor:
    """1 - soft IoU of each class over the batch, averaged over classes and over the outputs of deep supervision."""
    outputs = [predicted] if isinstance(predicted, Tensor) else predicted
    losses = []
    for output in outputs:
        shared = (output * target).sum(dim=(0, 2, 3))
        union = (output + target).sum(dim=(0, 2, 3)) - shared
        losses.append(1 - ((shared + 1) / (union + 1)).mean())
    return torch.stack(losses).mean()


def components(probabilities: np.ndarray) -> tuple[list[list[float]], list[float], list[int]]:
    """Boxes, scores and labels of the connected components of masks ``[C, H, W]``."""
    boxes, scores, labels = [], [], []
    for label, mask in enumerate(probabilities):
        taken = np.zeros(mask.shape, bool)
        for threshold in THRESHOLDS:
            count, regions, stats, _ = cv2.connectedComponentsWithStats((mask > threshold).astype(np.uint8))
            for region in range(1, count):
                x, y, width, height, _ = stats[region].tolist()
                inside = regions[y : y + height, x : x + width] == region
                part = (slice(y, y + height), slice(x, x + width))
                if max(width, height) < MIN_SIZE_PIXELS or (taken[part] & inside).any():
                    continue
                taken[part] |= inside
                boxes.append([x, y, x + width, y + height])
                scores.append(min(float(mask[part][inside].max()), 1.0))
                labels.append(label)
    return boxes, scores, labels


@torch.inference_mode()
def detect(network: nn.Module, record: ImageRecord, limit: int = 300) -> Detections:
    """The detections of one image."""
    image = normalize(read_image(record.path))
    pad = [(0, 0), *((0, -side % MULTIPLE) for side in image.shape[1:])]
    output = network(torch.from_numpy(np.pad(image, pad))[None])
    output = output if isinstance(output, Tensor) else output[-1]
    boxes, scores, labels = components(output[0, :, : record.height, : record.width].numpy())
    order = np.argsort(-np.array(scores), kind="stable")[:limit]
    found = np.array(boxes, np.float32).reshape(-1, 4)[order], np.array(scores, np.float32)[order]
    return Detections(*map(torch.from_numpy, found), torch.from_numpy(np.array(labels, np.int64)[order]))


def train(network: nn.Module, arguments: argparse.Namespace, data: CocoDataset) -> dict:
    """Trains until the budget is used; returns the number of steps and the seconds over all parts of the run."""
    optimizer = torch.optim.Adam(network.parameters(), arguments.lr)
    state_file = arguments.out / "state.pt"
    step, seconds = 0, 0.0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        step, seconds = state["step"], state["seconds"]
    network.train()
    last_save = time.time()

    def save() -> None:
        state = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "seconds": seconds}
        torch.save(state, state_file.with_suffix(".new"))
        state_file.with_suffix(".new").replace(state_file)

    def progress() -> float:
        return step / arguments.steps if arguments.steps else seconds / (60 * arguments.minutes)

    while progress() < 1:
        started = time.process_time()
        for group in optimizer.param_groups:  # a tenth of the rate in the last quarter
            group["lr"] = arguments.lr * (1.0 if progress() < 0.75 else 0.1)
        rng = np.random.default_rng((arguments.seed, step))
        images, masks = sample(data, rng, arguments.batch, arguments.crop, arguments.classes, arguments.masks)
        loss = soft_iou_loss(network(images), masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        seconds += time.process_time() - started
        if step % 20 == 0:
            print(f"step {step}, {seconds / 60:.1f} minutes, loss {loss.item():.3f}", flush=True)
        if time.time() - last_save > SAVE_INTERVAL_S:
            save()
            last_save = time.time()
    save()
    return {"steps": step, "seconds": seconds}


def export(network: nn.Module, path: Path, size: tuple[int, int]) -> None:
    """Writes the network as ONNX, to measure its speed with benchmarks.detector."""
    if hasattr(network, "mode"):
        network.mode = "test"
    names = {"input_names": ["images"], "output_names": ["masks"]}
    torch.onnx.export(network, torch.zeros(1, 1, *size), str(path), opset_version=17, dynamo=False, **names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("source", type=Path, help="checkout of BasicIRSTD")
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--classes", nargs="+", default=["drone"])
    parser.add_argument("--masks", type=Path, help="folder of masks NAME_pixels0.png, as SIRST has them")
    parser.add_argument("--minutes", type=float, help="processor time of training, over all parts of a run")
    parser.add_argument("--steps", type=int, help="training steps, to try the script")
    parser.add_argument("--stride", type=int, default=1, help="detect in every N-th image of each video")
    parser.add_argument("--crop", type=int, default=192)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if (arguments.minutes is None) == (arguments.steps is None):
        parser.error("give one of --minutes and --steps")
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    arguments.out.mkdir(parents=True, exist_ok=True)
    network = build(arguments.network, arguments.source.absolute(), len(arguments.classes))
    budget = train(network, arguments, load_coco(arguments.data / "fit.json"))
    network.eval()
    started, images = time.time(), 0
    for split in ("tune", "val"):
        data = load_coco(arguments.data / f"{split}.json")
        chosen = select_images(data, arguments.stride)
        images += len(chosen)
        found = [detect(network, record) for record in chosen]
        results = to_coco_results(data, chosen, found, arguments.classes)
        write_json(arguments.out / f"{split}_results.json", results, indent=None)
    export(network, arguments.out / "model.onnx", (256, 320))
    parameters = sum(parameter.numel() for parameter in network.parameters())
    speed = {"images_per_second": images / (time.time() - started), "threads": arguments.threads}
    write_json(
        arguments.out / "summary.json", {**budget, "parameters": parameters, **speed, "torch": torch.__version__}
    )


if __name__ == "__main__":
    main()
