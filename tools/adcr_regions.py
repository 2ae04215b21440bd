"""Shows the regions that ADCR compares and what it learns: python tools/adcr_regions.py RUN DATA sheet.png

RUN is the folder of a training with --adcr.weight. DATA is a COCO json, that of the training or another one. Batches
are drawn and augmented as in training. The table has these columns for every stage:

- learned: share of the possible loss reduction that is reached; 0 at the loss of random features, 1 at the minimum.
- AUC labelled, AUC others: how well the compared features distinguish targets from labelled distractors, and from
  regions that were chosen by contrast or at random. It is the probability that a target is more similar to another
  target than a distractor is. The row "score" has the AUC of the detector's own score as a baseline.
- gradient, cosine: norm of the gradient of ADCR relative to that of the detection loss on the stage's parameters, and
  cosine of the two gradients.

The sheet has a row of targets, one of labelled distractors and one of other negatives.
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
from danet.data.epoch_sampler import EpochSampler
from danet.data.loader import Batch, DetectionDataset, collate
from danet.losses import DetectionLoss
from danet.losses.adcr import ADCR, contrastive_terms
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

COLUMNS = 10
TILE_PIXELS = 96
KINDS = ("targets", "labelled", "others")
"""Kinds of regions: targets, labelled distractors, and negatives chosen by contrast or at random."""


def load(run: Path) -> tuple[TrainOptions, DANet, ADCR]:
    """Options of a training, and its network and ADCR in their last saved state, in training mode."""
    if not (run / CONFIG).is_file():
        raise UserError(f"{run}: is no folder of a training ({CONFIG} is missing)")
    options = cli.parse(TrainOptions, ["--config", str(run / CONFIG)], prog="danet train")
    if not options.adcr.weight or options.model.head != "default":
        raise UserError(f"{run}: must be a training with --adcr.weight and the default head")
    tensors, _ = load_tensors(run / STATE, FORMAT)
    model = build_model(options.model)
    target = options.model.classes.index(options.target or options.model.classes[0])
    adcr = ADCR(
        model.widths[: options.adcr.levels],
        model.backbone.strides[: options.adcr.levels],
        target=target,
        weight=options.adcr.weight,
        temperature=options.adcr.temperature,
        negatives=options.adcr.negatives,
        literal=options.adcr.literal,
    )
    for prefix, module in (("model.", model), ("extras.adcr.", adcr)):
        module.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    return options, model.train(), adcr.train()


def kinds(batch: Batch, regions: Regions) -> list[Tensor]:
    """For every image, the index in ``KINDS`` of each of its positives and negatives."""
    found = []
    for boxes, positives, negatives in zip(batch.boxes, *regions, strict=True):
        labelled = (negatives[:, None] == boxes.float()).all(2).any(1)
        found.append(torch.cat([torch.zeros(len(positives), dtype=torch.int64), 2 - labelled.long()]))
    return found


def auc(above: Tensor, below: Tensor) -> float:
    """Probability that a value of ``above`` exceeds one of ``below``; equal values count half."""
    above = above.flatten()[:, None]
    return ((above > below.flatten()).float() + (above == below.flatten()).float() / 2).mean().item()


def measure(
    model: DANet, adcr: ADCR, criterion: DetectionLoss, batch: Batch, regions: Regions
) -> dict[tuple[str, int], float]:
    """Metrics of a batch by their name and stage; stage -1 holds those of the whole network."""
    output = model(batch.images)
    samples = [torch.cat(pair) for pair in zip(*regions, strict=True)]
    kind = torch.cat(kinds(batch, regions))
    counts = torch.bincount(kind, minlength=len(KINDS)).tolist()
    metrics: dict[tuple[str, int], float] = {(name, -1): count for name, count in zip(KINDS, counts, strict=True)}
    targets, distractors = counts[0], sum(counts[1:])
    if targets < 2 or not distractors:  # nothing to compare
        return metrics

    # Contrastive loss and similarities of every level.
    losses = []
    others = [(name, number) for number, name in enumerate(KINDS) if number and counts[number]]
    for level, (projector, stride) in enumerate(zip(adcr.projectors, adcr.strides, strict=True)):
        vectors = adcr.project(projector, output.features[level].float(), samples, stride)
        targets_only = vectors[kind == 0]
        terms = contrastive_terms(targets_only, vectors[kind > 0], adcr.temperature)
        losses.append(terms.mean())
        minimum, chance = math.log(targets - 1), math.log(targets - 1 + distractors)
        metrics["learned", level] = (chance - terms.mean().item()) / (chance - minimum)
        with torch.no_grad():
            similarity = (targets_only @ targets_only.T)[~torch.eye(targets, dtype=torch.bool)]
            for name, number in others:
                metrics[f"AUC {name}", level] = auc(similarity, targets_only @ vectors[kind == number].T)
    # Scores of the detector in the regions, as a baseline.
    with torch.no_grad():
        scores = [
            sample_regions(logits[:, adcr.target, None], samples, stride, ADCR.SIDE).flatten(1).amax(1)
            for logits, stride in zip(output.logits, model.backbone.strides, strict=True)
        ]
    score = torch.stack(scores).amax(0)
    for name, number in others:
        metrics[f"AUC {name}", -1] = auc(score[kind == 0], score[kind == number])

    # Gradients of both losses on the stages.
    detection = torch.stack(list(criterion(output, batch).values())).sum()
    contrast = adcr.weight * torch.stack(losses).mean()
    for level, stage in enumerate(model.backbone.stages[: len(adcr.strides)]):
        parameters = [*stage.parameters()]
        ours, theirs = (
            torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters, retain_graph=True)])
            for loss in (contrast, detection)
        )
        metrics["gradient", level] = (ours.norm() / theirs.norm()).item()
        metrics["cosine", level] = torch.cosine_similarity(ours, theirs, dim=0).item()
    return metrics


def pictures(batch: Batch, regions: Regions) -> list[list[np.ndarray]]:
    """Pictures of the regions of each of ``KINDS``, cropped to twice the larger side of a region."""
    found: list[list[np.ndarray]] = [[] for _ in KINDS]
    low, high = np.percentile(batch.images.numpy(), (0.5, 99.9))
    for image, numbers, pair in zip(batch.images, kinds(batch, regions), zip(*regions, strict=True), strict=True):
        for number, box in zip(numbers.tolist(), torch.cat(pair).tolist(), strict=True):
            side = max(box[2] - box[0], box[3] - box[1], 4)
            x0, y0 = (max(0, int((box[axis] + box[axis + 2]) / 2 - side)) for axis in (0, 1))
            part = image[0, y0 : y0 + round(2 * side), x0 : x0 + round(2 * side)].numpy()
            part = (np.clip((part - low) / (high - low), 0, 1) * 255).astype(np.uint8)
            found[number].append(enlarge(part, TILE_PIXELS / max(part.shape)))
    return found


def table(metrics: list[dict[tuple[str, int], float]], strides: tuple[int, ...]) -> str:
    """Means over the batches as a Markdown table."""
    collected = defaultdict(list)
    for of_batch in metrics:
        for key, value in of_batch.items():
            collected[key].append(value)
    mean = defaultdict(lambda: math.nan, {key: float(np.mean(values)) for key, values in collected.items()})
    counts = ", ".join(f"{mean[name, -1]:.1f} {name}" for name in KINDS)
    lines = [f"{len(metrics)} batches of {counts}", ""]
    names = ("learned", "AUC labelled", "AUC others", "gradient", "cosine")
    lines.append("| stride in pixels | " + " | ".join(names) + " |")
    lines.append("|---" * (len(names) + 1) + "|")
    for level, title in enumerate([*map(str, strides), "score"]):
        row = [mean[name, level if level < len(strides) else -1] for name in names]
        lines.append(f"| {title} | " + " | ".join("" if math.isnan(v) else f"{v:.3f}" for v in row) + " |")
    return "\n".join(lines)


@dataclass
class Options:
    """Command-line options."""

    run: str
    """Folder of a training with --adcr.weight; also given as the first argument."""

    data: str
    """COCO json, that of the training or another one; also given as the second argument."""

    sheet: str
    """Image file to write; also given as the third argument."""

    batches: int = 20
    """Number of batches to draw."""

    seed: int = 0
    """Seed of the order of the images and of their augmentation."""

    def __post_init__(self) -> None:
        if self.batches < 1:
            raise UserError(f"batches must be 1 or more, got {self.batches}")


def show(options: Options) -> None:
    """Shows the regions that ADCR compares and what it learns."""
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
    metrics = []
    shown: list[list[np.ndarray]] = [[] for _ in KINDS]
    for number, keys in enumerate(itertools.islice(sampler, options.batches)):
        batch = collate([data[key] for key in keys])
        torch.manual_seed(number)
        regions = choose_regions(batch, target=adcr.target, ratio=adcr.negatives)
        metrics.append(measure(model, adcr, criterion, batch, regions))
        for row, tiles in zip(shown, pictures(batch, regions), strict=True):
            row += tiles[:2]  # so that the sheet shows many batches
    tiles, titles = [], []
    for name, row in zip(KINDS, shown, strict=True):
        tiles += [*row[:COLUMNS], *[np.zeros((TILE_PIXELS, TILE_PIXELS), np.uint8)] * (COLUMNS - len(row))]
        titles += [name, *[""] * (COLUMNS - 1)]
    write_image(options.sheet, contact_sheet(tiles, COLUMNS, titles))
    print(table(metrics, adcr.strides))


if __name__ == "__main__":
    raise SystemExit(cli.run(show, Options, prog="adcr_regions", positionals=["run", "data", "sheet"]))
