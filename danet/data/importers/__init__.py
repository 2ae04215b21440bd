"""Importers of public formats: ``danet data import FORMAT SOURCE OUT`` writes COCO jsons and images."""

from collections.abc import Sequence

from danet.utils.dispatch import dispatch

FORMATS = {
    "coco": ("danet.data.importers.coco", "a COCO json and its images"),
    "yolo": ("danet.data.importers.yolo", "YOLO txt files in labels/ beside images/"),
    "voc": ("danet.data.importers.voc", "Pascal VOC xml files"),
    "masks": ("danet.data.importers.masks", "mask images, whose 8-connected parts become boxes (SIRST)"),
    "svanstrom": ("danet.data.importers.svanstrom", "the infrared videos of Svanstrom et al. with MATLAB labels"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the importer named by the first word."""
    return dispatch("danet data import", FORMATS, argv)
