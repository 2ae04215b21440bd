"""Importers of public dataset formats: ``danet data import FORMAT SOURCE OUT`` writes COCO jsons and images."""

from collections.abc import Sequence

from danet.utils.dispatch import dispatch

FORMATS = {
    "coco": ("danet.data.importers.coco", "a COCO json and its images"),
    "yolo": ("danet.data.importers.yolo", "YOLO: images/ and labels/ with one txt file per image"),
    "voc": ("danet.data.importers.voc", "Pascal VOC: one xml file per image"),
    "masks": ("danet.data.importers.masks", "binary masks, such as SIRST; every 8-connected component becomes a box"),
    "svanstrom": ("danet.data.importers.svanstrom", "the infrared videos of Svanstrom et al. with MATLAB labels"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the importer that the first argument names."""
    return dispatch("danet data import", FORMATS, argv)
