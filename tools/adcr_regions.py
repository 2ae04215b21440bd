"""Shows what ADCR compares and what it learns: python tools/adcr_regions.py RUN DATA sheet.png

RUN: folder of a training with --adcr.weight. DATA: COCO json, the data of the training or others. The batches are drawn
and augmented as in training. Of every stage: how much of the loss is learned (0: by chance, 1: all of it), how well the
compared features tell targets from distractors (AUC: how often is a target nearer to another target than a distractor
is), those with a label and those chosen for their contrast or at random, and the gradient of ADCR against that of the
detection loss on the stage's parameters. The detector's own score, as an AUC, is what the features have to beat. The
sheet has a row of targets, one of labelled distractors and one of others.
"""

import itertools
import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from danet.checkpoint import load_tensors
from danet.data.loader import Batch, DetectionDataset, EpochSampler, collate
from danet.losses import DetectionLoss
from danet.losses.adcr import ADCR, build_adcr, contrastive_terms
from danet.losses.region_sampling import Regions, choose_regions, sample_regions
from danet.models import DANet, build_model
from danet.training.options import TrainOptions
from danet.training.run_folder import CONFIG, STATE
from danet.training.state import FORMAT
from danet.utils import cli
from danet.utils.drawing import contact_sheet, enlarge
from danet.utils.errors import UserError
from danet.utils.files import check_folder
from danet.utils.image_io import write_image

COLUMNS, SIDE = 10, 96
KINDS = ("targets", "labelled", "others")


def load(run: Path) -> tuple[TrainOptions, DANet, ADCR]:
    """The options of a training, and its network and ADCR as they were last saved, in training mode."""
    if not (run / CONFIG).is_file():
        raise UserError(f"{run}: no training ({CONFIG} is missing)")
    options = cli.parse(TrainOptions, ["--config", str(run / CONFIG)], prog="danet train")
    if not options.adcr.weight or options.model.head != "default":
        raise UserError(f"{run}: must be a training with --adcr.weight and the default head")
    tensors, _ = load_tensors(run / STATE, FORMAT)
    model = build_model(options.model)
    target = options.model.classes.index(options.target or options.model.classes[0])
    adcr = build_adcr(model, options.adcr, target)
    for prefix, module in (("model.", model), ("extras.adcr.", adcr)):
        module.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    return options, model.train(), adcr.train()


def kinds(batch: Batch, regions: Regions) -> list[Tensor]:
    """Of every image, 0, 1 or 2 for each of its positives and negatives: their place in ``KINDS``."""
    found = []
    for boxes, positives, negatives in zip(batch.boxes, *regions, strict=True):
        labelled = (negatives[:, None] == boxes.float()).all(2).any(1)
        found.append(torch.cat([torch.zeros(len(positives), dtype=torch.int64), 2 - labelled.long()]))
    return found


def auc(above: Tensor, below: Tensor) -> float:
    """How often a value of ``above`` is greater than one of ``below``, equal ones counting half."""
    above = above.flatten()[:, None]
    return ((above > below.flatten()).float() + (above == below.flatten()).float() / 2).mean().item()


def measure(
    model: DANet, adcr: ADCR, criterion: DetectionLoss, batch: Batch, regions: Regions
) -> dict[tuple[str, int], float]:
    """Figures of a batch by their name and stage, -1 for those of the whole."""
    output = model(batch.images)
    both = [torch.cat(pair) for pair in zip(*regions, strict=True)]
    kind = torch.cat(kinds(batch, regions))
    counts = torch.bincount(kind, minlength=len(KINDS)).tolist()
    figures: dict[tuple[str, int], float] = {(name, -1): count for name, count in zip(KINDS, counts, strict=True)}
    targets, distractors = counts[0], sum(counts[1:])
    if targets < 2 or not distractors:  # nothing to compare
        return figures

    losses = []
    others = [(name, number) for number, name in enumerate(KINDS) if number and counts[number]]
    for level, (projector, stride) in enumerate(zip(adcr.projectors, adcr.strides, strict=True)):
        vectors = adcr.project(projector, output.features[level].float(), both, stride)
        near = vectors[kind == 0]
        terms = contrastive_terms(near, vectors[kind > 0], adcr.temperature)
        losses.append(terms.mean())
        floor, chance = math.log(targets - 1), math.log(targets - 1 + distractors)
        figures["learned", level] = (chance - terms.mean().item()) / (chance - floor)
        with torch.no_grad():
            alike = (near @ near.T)[~torch.eye(targets, dtype=torch.bool)]
            for name, number in others:
                figures[f"AUC {name}", level] = auc(alike, near @ vectors[kind == number].T)
    with torch.no_grad():
        scores = [
            sample_regions(logits[:, adcr.target, None], both, stride, ADCR.SIZE).flatten(1).amax(1)
            for logits, stride in zip(output.logits, model.backbone.strides, strict=True)
        ]
    score = torch.stack(scores).amax(0)
    for name, number in others:
        figures[f"AUC {name}", -1] = auc(score[kind == 0], score[kind == number])

    detection = torch.stack(list(criterion(output, *batch[1:]).values())).sum()
    contrast = adcr.weight * torch.stack(losses).mean()
    for level, stage in enumerate(model.backbone.stages[: len(adcr.strides)]):
        parameters = [*stage.parameters()]
        ours, theirs = (
            torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters, retain_graph=True)])
            for loss in (contrast, detection)
        )
        figures["gradient", level] = (ours.norm() / theirs.norm()).item()
        figures["cosine", level] = torch.cosine_similarity(ours, theirs, dim=0).item()
    return figures


def pictures(batch: Batch, regions: Regions) -> list[list[np.ndarray]]:
    """Of each of ``KINDS`` pictures of the regions with as much around them."""
    found: list[list[np.ndarray]] = [[] for _ in KINDS]
    low, high = np.percentile(batch.images.numpy(), (0.5, 99.9))
    for image, numbers, pair in zip(batch.images, kinds(batch, regions), zip(*regions, strict=True), strict=True):
        for number, box in zip(numbers.tolist(), torch.cat(pair).tolist(), strict=True):
            side = max(box[2] - box[0], box[3] - box[1], 4)
            x0, y0 = (max(0, int((box[axis] + box[axis + 2]) / 2 - side)) for axis in (0, 1))
            part = image[0, y0 : y0 + round(2 * side), x0 : x0 + round(2 * side)].numpy()
            part = (np.clip((part - low) / (high - low), 0, 1) * 255).astype(np.uint8)
            found[number].append(enlarge(part, SIDE / max(part.shape)))
    return found


def table(figures: list[dict[tuple[str, int], float]], strides: tuple[int, ...]) -> str:
    """Means over the batches."""
    collected = defaultdict(list)
    for of_batch in figures:
        for key, value in of_batch.items():
            collected[key].append(value)
    mean = defaultdict(lambda: math.nan, {key: float(np.mean(values)) for key, values in collected.items()})
    counts = ", ".join(f"{mean[name, -1]:.1f} {name}" for name in KINDS)
    lines = [f"{len(figures)} batches of {counts}", ""]
    names = ("learned", "AUC labelled", "AUC others", "gradient", "cosine")
    lines.append("| stride | " + " | ".join(names) + " |")
    lines.append("|---" * (len(names) + 1) + "|")
    for level, title in enumerate([*map(str, strides), "score"]):
        row = [mean[name, level if level < len(strides) else -1] for name in names]
        lines.append(f"| {title} | " + " | ".join("" if math.isnan(v) else f"{v:.3f}" for v in row) + " |")
    return "\n".join(lines)


@dataclass
class Options:
    """Options of the tool."""

    run: str
    """Folder of a training with --adcr.weight; also given as the first word."""

    data: str
    """COCO json, the data of the training or others; the second word."""

    sheet: str
    """Picture to write; the third word."""

    batches: int = 20
    """How many to draw."""

    seed: int = 0
    """Of their order and augmentation."""

    def __post_init__(self) -> None:
        if self.batches < 1:
            raise UserError(f"batches must be 1 or more, got {self.batches}")


def show(options: Options) -> None:
    """Shows what ADCR compares and what it learns in a training."""
    check_folder(Path(options.sheet).parent)
    trained, model, adcr = load(Path(options.run))
    data = DetectionDataset(
        [options.data],
        trained.model.classes,
        channels=trained.model.input_channels,
        augmentation=trained.augmentation,
        seed=options.seed,
    )
    criterion = DetectionLoss(model, trained.assignment)
    sampler = EpochSampler(data.sizes, data.weights, batch=trained.batch, epochs=1, seed=options.seed)
    figures = []
    shown: list[list[np.ndarray]] = [[] for _ in KINDS]
    for number, keys in enumerate(itertools.islice(sampler, options.batches)):
        batch = collate([data[key] for key in keys])
        torch.manual_seed(number)
        regions = choose_regions(*batch, target=adcr.target, ratio=adcr.negatives)
        figures.append(measure(model, adcr, criterion, batch, regions))
        for row, tiles in zip(shown, pictures(batch, regions), strict=True):
            row += tiles[:2]  # of many batches
    tiles, titles = [], []
    for name, row in zip(KINDS, shown, strict=True):
        tiles += [*row[:COLUMNS], *[np.zeros((SIDE, SIDE), np.uint8)] * (COLUMNS - len(row))]
        titles += [name, *[""] * (COLUMNS - 1)]
    write_image(options.sheet, contact_sheet(tiles, COLUMNS, titles))
    print(table(figures, adcr.strides))


if __name__ == "__main__":
    raise SystemExit(cli.run(show, Options, prog="adcr_regions", positionals=["run", "data", "sheet"]))
