"""``danet data inspect``: counts, draws and checks datasets, and finds leakage between them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from danet.data.coco_dataset import CocoDataset, ImageRecord, dataset_files, list_splits, load_coco
from danet.data.image_record import CLIPPED, EMPTY, OUTSIDE
from danet.data.leakage import HASH_BITS, average_hash, find_leakage
from danet.data.scales import EDGES, SCALES, box_sizes
from danet.utils import cli
from danet.utils.drawing import contact_sheet, draw_boxes
from danet.utils.errors import UserError
from danet.utils.files import read_json, write_json
from danet.utils.image_io import read_image, write_image
from danet.utils.names import quote
from danet.utils.progress import track

QUANTILES = {0.0: "min", 0.05: "5%", 0.25: "25%", 0.5: "50%", 0.75: "75%", 0.95: "95%", 1.0: "max"}
WARNED = frozenset({CLIPPED, EMPTY, OUTSIDE})
"""Kinds of repairs that ``load_coco`` also reports in one warning for each box."""


@dataclass
class Options:
    """Options of ``danet data inspect``."""

    data: list[str]
    """COCO jsons, folders that contain one or one for each split, or YOLO datasets (data.yaml); several datasets are
    searched for leakage."""

    edges: list[float] = field(default_factory=lambda: list(EDGES))
    """Two edges between small, medium and large boxes, in pixels of sqrt(width * height)."""

    sheet: str | None = None
    """PNG file for a contact sheet of images with their boxes."""

    pictures: int = 24
    """Number of images on the contact sheet, divided among the datasets."""

    images: bool = True
    """Read every image, check its size, and search for nearly identical images in different datasets."""

    hash_distance: int = 12
    """Two images are nearly identical if at most this many of the 1024 bits of their hashes differ."""

    json: str | None = None
    """JSON file for all counts and warnings."""

    seed: int = 0
    """Seed of the random choice of images for the contact sheet."""

    quiet: bool = False
    """Print only errors."""


@dataclass
class Summary:
    """Counts of one dataset; the dictionaries have the categories as keys, sizes are sqrt(width * height) in pixels."""

    path: str
    images: int
    images_without_boxes: int
    videos: int
    recordings: int
    ignore_regions: int
    boxes: dict[str, int]
    size_quantiles: dict[str, dict[str, float]]
    scale_buckets: dict[str, dict[str, int]]
    warnings: list[str]
    repairs: list[str]


def inspect(options: Options) -> None:
    """Counts boxes and sizes, draws a contact sheet, and warns about errors and leakage."""
    if not options.data:
        raise UserError("give at least one COCO json")
    if len(options.edges) != 2 or not 0 < options.edges[0] < options.edges[1]:
        raise UserError(f"--edges must be two ascending positive numbers, got {options.edges}")
    if options.seed < 0:
        raise UserError(f"--seed must be 0 or more, got {options.seed}")
    if options.pictures < 1:
        raise UserError(f"--pictures must be 1 or more, got {options.pictures}")
    datasets = [load_coco(path, split=split) for path in options.data for split in list_splits(path)]
    inputs = [file for path in options.data for file in dataset_files(path)]
    if options.sheet:
        inputs += [record.path for dataset in datasets for record in dataset.records]
    cli.check_outputs([options.json, options.sheet], inputs)
    summaries = [summarize(dataset, options.edges) for dataset in datasets]
    hashes = None
    if options.images:
        pairs = zip(datasets, summaries, strict=True)
        hashes = [read_all(dataset, summary.warnings, options.quiet) for dataset, summary in pairs]
    leakage = find_leakage(datasets, hashes, options.hash_distance)
    if options.sheet:
        draw_sheet(datasets, options.sheet, options.pictures, options.seed)
    if options.json:
        write_json(options.json, {"datasets": [asdict(item) for item in summaries], "leakage": leakage})
    if not options.quiet:
        _print(summaries, leakage, options.edges)


def summarize(dataset: CocoDataset, edges: Sequence[float]) -> Summary:
    """Counts images, boxes and sizes of a dataset; ignore regions are counted separately, not in their category.

    Args:
        dataset: the dataset.
        edges: two edges between small, medium and large boxes, in pixels.

    Example:
        >>> from pathlib import Path
        >>> path = getfixture("tmp_path") / "empty.json"
        >>> _ = path.write_text('{"images": [], "annotations": [], "categories": []}')
        >>> summarize(load_coco(path), EDGES).images
        0
    """
    sizes: dict[str, list[float]] = {name: [] for name in dataset.categories}
    for item in dataset.records:
        for name, size, ignore in zip(item.names, box_sizes(item.boxes).tolist(), item.ignore, strict=True):
            if not ignore:
                sizes[name].append(size)
    # Clipped and dropped boxes have warnings of their own.
    counts = dataset.repairs.counts
    repaired = [line for kind, line in zip(counts, dataset.repairs.lines(), strict=True) if kind not in WARNED]
    present = {name: np.array(values) for name, values in sizes.items() if values}
    quantiles = {
        name: {title: round(float(np.quantile(values, q)), 2) for q, title in QUANTILES.items()}
        for name, values in present.items()
    }
    buckets = {
        name: dict(zip(SCALES, np.bincount(np.digitize(values, edges), minlength=3).tolist(), strict=True))
        for name, values in present.items()
    }
    return Summary(
        path=str(dataset.path),
        images=len(dataset.records),
        images_without_boxes=sum(not item.names for item in dataset.records),
        videos=len({item.video for item in dataset.records} - {None}),
        recordings=len({item.recording for item in dataset.records} - {None}),
        ignore_regions=sum(int(item.ignore.sum()) for item in dataset.records),
        boxes={name: len(values) for name, values in sizes.items()},
        size_quantiles=quantiles,
        scale_buckets=buckets,
        warnings=[*dataset.warnings, *check_masks(dataset)],
        repairs=repaired,
    )


def check_masks(dataset: CocoDataset) -> list[str]:
    """Returns a warning for each COCO ``segmentation`` that does not fit its image: an RLE mask of another size, or a
    polygon that leaves the image by more than a pixel."""
    if dataset.path.suffix != ".json":  # YOLO
        return []
    content = read_json(dataset.path)
    images = dict(zip((item["id"] for item in content["images"]), dataset.records, strict=True))
    names = {item["id"]: item.get("file_name", item.get("filename")) for item in content["images"]}
    warnings = []
    for index, annotation in enumerate(content.get("annotations", content.get("annotation"))):
        mask, image = annotation.get("segmentation"), images[annotation["image_id"]]
        width, height = image.width, image.height
        place = f"{names[annotation['image_id']]}: mask of annotation {annotation.get('id', f'number {index}')}"
        try:
            if isinstance(mask, dict):
                rows, columns = mask["size"]
                if (rows, columns) != (height, width):
                    warnings.append(f"{place} is {quote(columns)} x {quote(rows)}, the image {width} x {height}")
            elif mask:
                points = np.concatenate([np.array(polygon, float).reshape(-1, 2) for polygon in mask])
                if not ((points >= -1) & (points <= [width + 1, height + 1])).all():
                    warnings.append(f"{place} reaches outside the image ({width} x {height})")
        except (KeyError, OverflowError, TypeError, ValueError):
            warnings.append(f"{place} is neither RLE nor polygons")
    return warnings


def read_all(dataset: CocoDataset, warnings: list[str], quiet: bool = False) -> np.ndarray:
    """Reads all images of a dataset and returns their average hashes, int8 ``[N, 1024]``.

    A line is added to ``warnings`` for each image that cannot be decoded or has another size than the json states.
    """
    hashes = np.zeros((len(dataset.records), HASH_BITS), np.int8)
    for index, item in enumerate(track(dataset.records, f"reading {dataset.path.name}", quiet=quiet)):
        try:
            image = read_image(item.path)
        except UserError as error:
            warnings.append(str(error))
            continue
        height, width = image.shape[:2]
        if (width, height) != (item.width, item.height):
            said = f"the file is {width} x {height}, the json says {item.width} x {item.height}"
            warnings.append(f"{item.path.name}: {said}")
        hashes[index] = average_hash(image)
    return hashes


def draw_sheet(datasets: Sequence[CocoDataset], path: str, pictures: int, seed: int) -> None:
    """Writes a contact sheet of images with their boxes; ignore regions are grey.

    Args:
        datasets: each gives the same number of images, chosen by ``choose``; broken images are left out.
        path: the PNG file.
        pictures: number of images.
        seed: seed of the choice.

    Raises:
        UserError: if no image can be read, or the file cannot be written.
    """
    rng = np.random.default_rng(seed)
    tiles, titles = [], []
    for dataset in datasets:
        labels = {name: index for index, name in enumerate(dataset.categories)}
        for item in choose(dataset, -(-pictures // len(datasets)), rng):
            try:
                image = read_image(item.path)
            except UserError:
                continue
            indices = [-1 if ignore else labels[name] for name, ignore in zip(item.names, item.ignore, strict=True)]
            tiles.append(draw_boxes(image, item.boxes, labels=indices, names=dataset.categories))
            name = item.path.stem if item.video is None else f"{item.video} frame {item.frame}"
            titles.append(f"{dataset.path.stem}: {name}")
    if not tiles:
        raise UserError(f"{path}: no image can be drawn")
    write_image(path, contact_sheet(tiles, columns=4, titles=titles))


def choose(dataset: CocoDataset, count: int, rng: np.random.Generator) -> list[ImageRecord]:
    """Chooses at most ``count`` random images with boxes, the same number for each category if possible.

    If the dataset has no boxes, images without boxes are chosen.
    """
    shuffled = [dataset.records[index] for index in rng.permutation(len(dataset.records))]
    by_name: dict[str, list[ImageRecord]] = {}
    for item in shuffled:
        for name in set(item.names):
            by_name.setdefault(name, []).append(item)
    queues = [by_name[name] for name in dataset.categories if name in by_name] or [shuffled]
    chosen: dict[int, ImageRecord] = {}
    for turn in range(len(shuffled)):
        if len(chosen) >= count:
            break
        for queue in queues:
            if turn < len(queue) and len(chosen) < count:
                chosen[id(queue[turn])] = queue[turn]
    return list(chosen.values())


def _print(summaries: Sequence[Summary], leakage: Sequence[str], edges: Sequence[float]) -> None:
    console = Console(markup=False, emoji=False)  # names of categories and files are printed as they are
    for summary in summaries:
        console.print(summary.path, style="bold", highlight=False, soft_wrap=True)
        console.print(
            f"{summary.images} images ({summary.images_without_boxes} without boxes), {summary.videos} videos, "
            f"{summary.recordings} recordings, {summary.ignore_regions} ignore regions",
            highlight=False,
        )
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.add_column("category", min_width=8, overflow="fold")
        low, high = (f"{edge:g}" for edge in edges)
        for title in ("boxes", f"<{low}", f"{low}-{high}", f">={high}", *QUANTILES.values()):
            table.add_column(title, justify="right", no_wrap=True)
        for name, count in summary.boxes.items():
            buckets = summary.scale_buckets.get(name, {}).values()
            sizes = summary.size_quantiles.get(name, {}).values()
            table.add_row(name, str(count), *map(str, buckets), *(f"{size:.1f}" for size in sizes))
        console.print(table)
        _print_warnings(console, summary.warnings)
        for line in summary.repairs:
            console.print(f"repaired: {line}", style="yellow", highlight=False, soft_wrap=True)
    console.print("scale buckets and quantiles of sqrt(width * height) in pixels", style="dim", highlight=False)
    _print_warnings(console, leakage)
    if len(summaries) > 1 and not leakage:
        console.print("no leakage found between the files", style="green")


def _print_warnings(console: Console, warnings: Sequence[str], limit: int = 10) -> None:
    for warning in warnings[:limit]:
        console.print(f"warning: {warning}", style="yellow", highlight=False, soft_wrap=True)
    if len(warnings) > limit:
        console.print(f"warning: and {len(warnings) - limit} more (--json writes all of them)", style="yellow")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``danet data inspect``."""
    return cli.run(inspect, Options, prog="danet data inspect", positionals=["data"], argv=argv)


if __name__ == "__main__":
    raise SystemExit(main())
