"""What a dataset holds, a sheet of its pictures, and what is wrong with it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from danet.data.coco_dataset import CocoDataset, ImageRecord, load_coco
from danet.data.leakage import HASH_BITS, average_hash, find_leakage
from danet.utils import cli
from danet.utils.drawing import contact_sheet, draw_boxes
from danet.utils.errors import UserError
from danet.utils.files import read_json, write_json
from danet.utils.image_io import read_image, write_image
from danet.utils.progress import track

QUANTILES = {0.0: "min", 0.05: "5%", 0.25: "25%", 0.5: "50%", 0.75: "75%", 0.95: "95%", 1.0: "max"}
BUCKETS = ("small", "medium", "large")


@dataclass
class Options:
    data: list[str]
    """COCO jsons, or folders that hold one; between several of them leakage is looked for."""

    edges: list[float] = field(default_factory=lambda: [14.0, 18.0])
    """Edges of the scale buckets: small < first <= medium < second <= large, in pixels of sqrt(w*h)."""

    sheet: str | None = None
    """PNG file for a sheet of pictures with their boxes."""

    pictures: int = 24
    """Pictures on the sheet, spread over the datasets."""

    images: bool = True
    """Read every image: check its size and look for near-identical ones across files."""

    hash_distance: int = 12
    """Images of two files are near-identical if at most this many of 1024 bits of their hashes differ."""

    json: str | None = None
    """JSON file for all figures and warnings."""

    seed: int = 0
    """Seed of the choice of pictures."""

    quiet: bool = False
    """Print nothing but errors."""


@dataclass
class Summary:
    """Figures of one dataset; sizes are sqrt(width * height) in pixels, by category."""

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


def inspect(options: Options) -> None:
    """Counts boxes and sizes, draws a sheet of pictures, and warns of faults and leakage."""
    if not options.data:
        raise UserError("give at least one COCO json")
    if len(options.edges) != 2 or not 0 < options.edges[0] < options.edges[1]:
        raise UserError(f"--edges must be two rising numbers, got {options.edges}")
    if options.seed < 0:
        raise UserError(f"--seed must be 0 or more, got {options.seed}")
    if options.pictures < 1:
        raise UserError(f"--pictures must be 1 or more, got {options.pictures}")
    datasets = [load_coco(path) for path in options.data]
    summaries = [summarise(dataset, options.edges) for dataset in datasets]
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


def summarise(dataset: CocoDataset, edges: Sequence[float]) -> Summary:
    """Counts of one dataset. Ignore regions are counted apart from the boxes of their category."""
    sizes: dict[str, list[float]] = {name: [] for name in dataset.categories}
    for item in dataset.records:
        sides = np.sqrt((item.boxes[:, 2] - item.boxes[:, 0]) * (item.boxes[:, 3] - item.boxes[:, 1]))
        for name, side, ignore in zip(item.names, sides.tolist(), item.ignore, strict=True):
            if not ignore:
                sizes[name].append(side)
    present = {name: np.array(values) for name, values in sizes.items() if values}
    quantiles = {
        name: {title: round(float(np.quantile(values, q)), 2) for q, title in QUANTILES.items()}
        for name, values in present.items()
    }
    buckets = {
        name: dict(zip(BUCKETS, np.bincount(np.digitize(values, edges), minlength=3).tolist(), strict=True))
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
    )


def check_masks(dataset: CocoDataset) -> list[str]:
    """A line for each COCO ``segmentation`` that does not fit its image: an RLE of another size, or a polygon
    that leaves the image by more than a pixel."""
    content = read_json(dataset.path)
    images = {item["id"]: item for item in content["images"]}
    warnings = []
    for index, annotation in enumerate(content["annotations"]):
        mask, image = annotation.get("segmentation"), images[annotation["image_id"]]
        width, height = image["width"], image["height"]
        place = f"{image['file_name']}: mask of annotation {annotation.get('id', f'number {index}')}"
        try:
            if isinstance(mask, dict):
                rows, columns = mask["size"]
                if (rows, columns) != (height, width):
                    warnings.append(f"{place} is {columns} x {rows}, the image {width} x {height}")
            elif mask:
                points = np.concatenate([np.array(polygon, float).reshape(-1, 2) for polygon in mask])
                if not ((points >= -1) & (points <= [width + 1, height + 1])).all():
                    warnings.append(f"{place} reaches outside the image ({width} x {height})")
        except (KeyError, TypeError, ValueError):
            warnings.append(f"{place} is neither RLE nor polygons")
    return warnings


def read_all(dataset: CocoDataset, warnings: list[str], quiet: bool = False) -> np.ndarray:
    """Hashes ``[N, 1024]`` of all images; adds a warning for each that is broken or does not fit the json."""
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
    """Writes a PNG of ``pictures`` images with their boxes, as many of each dataset; broken images are left out,
    ignore regions are grey.

    Images with boxes are preferred, and of these each category gets its turn.
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
    """At most ``count`` images at random, the categories in turn."""
    shuffled = [dataset.records[index] for index in rng.permutation(len(dataset.records))]
    queues = [[item for item in shuffled if name in item.names] for name in dataset.categories]
    queues = [queue for queue in queues if queue] or [shuffled]
    chosen: dict[int, ImageRecord] = {}
    for turn in range(len(shuffled)):
        for queue in queues:
            if turn < len(queue) and len(chosen) < count:
                chosen[id(queue[turn])] = queue[turn]
    return list(chosen.values())


def _print(summaries: Sequence[Summary], leakage: Sequence[str], edges: Sequence[float]) -> None:
    console = Console()
    for summary in summaries:
        console.print(summary.path, style="bold", highlight=False, soft_wrap=True)
        console.print(
            f"{summary.images} images ({summary.images_without_boxes} without boxes), {summary.videos} videos, "
            f"{summary.recordings} recordings, {summary.ignore_regions} ignore regions",
            highlight=False,
        )
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.add_column("category")
        low, high = (f"{edge:g}" for edge in edges)
        for title in ("boxes", f"<{low}", f"{low}-{high}", f">={high}", *QUANTILES.values()):
            table.add_column(title, justify="right", no_wrap=True)
        for name, count in summary.boxes.items():
            buckets = summary.scale_buckets.get(name, {}).values()
            sizes = summary.size_quantiles.get(name, {}).values()
            table.add_row(name, str(count), *map(str, buckets), *(f"{size:.1f}" for size in sizes))
        console.print(table)
        _print_warnings(console, summary.warnings)
    console.print("buckets and quantiles of s = sqrt(width * height) in pixels", style="dim", highlight=False)
    _print_warnings(console, leakage)
    if len(summaries) > 1 and not leakage:
        console.print("no leakage found between the files", style="green")


def _print_warnings(console: Console, warnings: Sequence[str], most: int = 10) -> None:
    for warning in warnings[:most]:
        console.print(f"warning: {warning}", style="yellow", highlight=False, markup=False, soft_wrap=True)
    if len(warnings) > most:
        console.print(f"warning: and {len(warnings) - most} more (all of them with --json)", style="yellow")


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(inspect, Options, prog="danet data inspect", positionals=["data"], argv=argv)


if __name__ == "__main__":
    raise SystemExit(main())
