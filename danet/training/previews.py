"""Pictures of what a training sees, written at its start: augmented samples with their boxes, and label statistics."""

import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from danet.boxes import centres, size
from danet.data.epoch_sampler import EpochSampler
from danet.data.loader import DetectionDataset, Sample
from danet.data.normalize import RANGE_UNITS
from danet.evaluation.plots import COLORS, HEIGHT, STYLE, WIDTH, write_png
from danet.training.run_folder import LABELS, SAMPLES
from danet.utils.drawing import PALETTE, UNLABELLED_COLOR, add_legend, contact_sheet, draw_boxes, enlarge
from danet.utils.image_io import write_image

SHOWN_SAMPLES = 16
COLUMNS = 4
TILE_PIXELS = 320
"""Width and height of a sample in the sheet are at most this."""
MAX_COUNTED_IMAGES = 20_000
"""The statistics use evenly spaced images of a larger dataset."""
MAX_CLASSES_SHOWN = 20


def write_previews(dataset: DetectionDataset, sampler: EpochSampler, folder: Path) -> None:
    """Writes the pictures of a training that the folder does not have yet.

    Args:
        dataset: the training samples.
        sampler: their order; the samples of the first batches are shown.
        folder: the folder of the run.

    Raises:
        UserError: an image cannot be read, or the folder cannot be written.
    """
    if not (folder / SAMPLES).is_file():
        first = sampler.order(0).reshape(-1)[:SHOWN_SAMPLES].tolist()
        write_image(
            folder / SAMPLES,
            sample_sheet([dataset[0, index] for index in first], dataset.classes, channels=dataset.channels),
        )
    if not (folder / LABELS).is_file():
        write_png(folder / LABELS, label_figure(dataset))


def sample_sheet(samples: Sequence[Sample], classes: Sequence[str], *, channels: int = 1) -> np.ndarray:
    """Samples as the network sees them, with their boxes and a legend.

    Further channels of a sample (``model.lags``, ``model.local_contrast``) are shown at the right of its image.

    Args:
        samples: at least one.
        classes: names of the model's classes.
        channels: number of the channels of a sample that are the image, 1 or 3.

    Returns:
        uint8 BGR ``[H, W, 3]``.

    Example:
        >>> import torch
        >>> box = torch.tensor([[10.0, 10.0, 22.0, 18.0]])
        >>> sample = Sample(torch.zeros(1, 48, 64), box, torch.tensor([0]), torch.tensor([False]))
        >>> sample_sheet([sample], ["drone"]).shape[2]
        3
    """
    # Samples with further channels are wider, so that fewer of them fit side by side.
    tiles = 1 + len(samples[0].image) - channels
    sheet = contact_sheet([_draw(sample, classes, channels) for sample in samples], max(1, COLUMNS // tiles))
    entries = [(PALETTE[index % len(PALETTE)], name) for index, name in enumerate(classes[:MAX_CLASSES_SHOWN])]
    ignored = PALETTE[len(classes) % len(PALETTE)]
    return add_legend(sheet, [*entries, (ignored, "ignored in training"), (UNLABELLED_COLOR, "background class")])


def _draw(sample: Sample, classes: Sequence[str], channels: int) -> np.ndarray:
    """One sample as a BGR image; ignore regions have the color and the name after those of the classes."""
    scaled = np.clip(127.5 + sample.image.numpy() * (127.5 / RANGE_UNITS), 0, 255).astype(np.uint8)
    side = max(scaled.shape[1:])
    factor = TILE_PIXELS / side if side > TILE_PIXELS else max(1, TILE_PIXELS // side)
    labels = np.where(sample.ignore, len(classes), sample.labels).tolist()
    image = np.ascontiguousarray(scaled[:channels].transpose(1, 2, 0).squeeze())
    boxes = sample.boxes.numpy() * factor
    drawn = [draw_boxes(enlarge(image, factor), boxes, None, labels, [*classes, "ignored"])]
    # Show the further channels without boxes, which would hide what moves.
    drawn += [cv2.cvtColor(enlarge(channel, factor), cv2.COLOR_GRAY2BGR) for channel in scaled[channels:]]
    return np.hstack(drawn)


@matplotlib.rc_context(STYLE)
def label_figure(dataset: DetectionDataset) -> Figure:
    """Statistics of the annotated boxes: number by class, sizes, positions in the image, and boxes per image.

    Example:
        >>> import cv2
        >>> from danet.data.coco_dataset import ImageRecord, write_coco
        >>> path = getfixture("tmp_path") / "a.png"
        >>> _ = cv2.imwrite(str(path), np.zeros((48, 64), np.uint8))
        >>> record = ImageRecord(path, 64, 48, np.array([[10, 10, 22, 18]]), ["drone"], np.array([False]))
        >>> write_coco(path.with_suffix(".json"), [record], ["drone"])
        >>> len(label_figure(DetectionDataset([str(path.parent)], ["drone"])).axes)
        4
    """
    step = -(-len(dataset) // MAX_COUNTED_IMAGES)
    records = [dataset.records[index] for index in range(0, len(dataset), step)]
    names = Counter(itertools.chain.from_iterable(record.names for record in records))
    boxes = np.concatenate([np.asarray(record.boxes, float).reshape(-1, 4) for record in records])
    extent = np.concatenate([np.tile([record.width, record.height], (len(record.boxes), 1)) for record in records])

    figure = Figure(figsize=(2 * WIDTH, 2 * HEIGHT))
    by_class, by_size, by_place, by_image = figure.subplots(2, 2).flat
    shown = names.most_common(MAX_CLASSES_SHOWN)
    colors = [COLORS[0] if name in dataset.classes else COLORS[4] for name, _ in shown]
    by_class.barh([name for name, _ in shown], [count for _, count in shown], color=colors)
    by_class.invert_yaxis()
    trained = "" if names.keys() <= {*dataset.classes} else "; brown: not a class of the model"
    by_class.set(xlabel="boxes", title=f"boxes by class{trained}")

    sides = np.maximum(size(boxes), 1.0)
    by_size.hist(sides, bins=np.geomspace(1.0, max(sides.max(initial=2.0), 2.0), 40), color=COLORS[0])
    by_size.set(xscale="log", xlabel="sqrt(width * height), pixels", ylabel="boxes", title="sizes in the images")

    middles = centres(boxes) / np.maximum(extent, 1)
    counts, _, _ = np.histogram2d(middles[:, 1], middles[:, 0], bins=32, range=[[0, 1], [0, 1]])
    by_place.imshow(counts, cmap="magma", extent=(0, 1, 1, 0), aspect="auto")
    by_place.grid(False)
    by_place.set(xlabel="x / width", ylabel="y / height", title="centres of the boxes")

    per_image = np.array([len(record.boxes) for record in records])
    by_image.hist(per_image, bins=np.arange(min(per_image.max(), 50) + 2) - 0.5, color=COLORS[0])
    by_image.set(xlabel="boxes in an image", ylabel="images", title="boxes per image")
    images = f"{len(records)} of {len(dataset)}" if step > 1 else f"{len(dataset)}"
    figure.suptitle(f"Labels of {images} training images, before augmentation", fontsize=12)
    return figure
