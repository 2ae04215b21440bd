"""The detections of one image: what a detector returns."""

import csv
import io
import opcode
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import torch
from torch import Tensor

from danet.utils.files import write_json, write_text

SHOWN_IN_REPR = 5
"""Detections that ``repr`` lists."""

UNPACKING_INSTRUCTIONS = frozenset({"UNPACK_SEQUENCE", "UNPACK_EX", "CALL_FUNCTION_EX"})
"""Instructions of Python that unpack an iterable, as in ``a, b, c = found`` and ``function(*found)``."""


class Detection(NamedTuple):
    """One detection.

    Example:
        >>> Detection((20.0, 30.0, 32.0, 38.0), 0.87, 0, "drone").name
        'drone'
    """

    box: tuple[float, float, float, float]
    """(x0, y0, x1, y1) in pixels."""
    score: float
    """In [0, 1]."""
    label: int
    """Index of the class."""
    name: str
    """Name of the class."""


class Detections:
    """The detections of one image, by descending score.

    ``len(found)`` is their number, ``for each in found`` yields a ``Detection`` for each, ``found[0]`` is the best one.
    Indexing with a mask, a slice or indices selects detections. ``boxes, scores, labels = found`` unpacks the arrays.

    Attributes:
        boxes: float32 ``[M, 4]`` (x0, y0, x1, y1) in pixels of the image.
        scores: float32 ``[M]`` in [0, 1], descending.
        labels: int64 ``[M]``, indices into ``classes``.
        classes: names of all classes of the model; None if they are not known.
        image: the image of the detections, an array or a path; None if it is not known, as for the frames of a video.

    Example:
        >>> boxes = torch.tensor([[20.0, 30.0, 32.0, 38.0], [5.0, 6.0, 9.0, 9.0]])
        >>> found = Detections(boxes, torch.tensor([0.9, 0.4]), torch.tensor([0, 1]), ["drone", "bird"])
        >>> len(found), found.names, found[found.scores > 0.5]
        (2, ['drone', 'bird'], Detections(1: drone 0.90 at (20.0, 30.0, 32.0, 38.0)))
        >>> [each.name for each in found]
        ['drone', 'bird']
        >>> boxes, scores, labels = found
        >>> scores
        tensor([0.9000, 0.4000])
    """

    def __init__(
        self,
        boxes: Any,
        scores: Any,
        labels: Any,
        classes: Sequence[str] | None = None,
        image: np.ndarray | str | os.PathLike | None = None,
    ) -> None:
        self.boxes = boxes
        self.scores = scores
        self.labels = labels
        self.classes = None if classes is None else list(classes)
        self.image = image

    @property
    def names(self) -> list[str]:
        """The name of each detection's class; its number where the names are not known."""
        return [self._name(label) for label in self.labels.tolist()]

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Any]:
        # Detectors of earlier versions returned a tuple (boxes, scores, labels), and much code unpacks it. Python calls
        # __iter__ for unpacking and for a loop alike, so that only the instruction of the caller tells them apart.
        caller = sys._getframe(1)
        if opcode.opname[caller.f_code.co_code[caller.f_lasti]] in UNPACKING_INSTRUCTIONS:
            return iter((self.boxes, self.scores, self.labels))
        return (self[index] for index in range(len(self)))

    @overload
    def __getitem__(self, index: int) -> Detection: ...
    @overload
    def __getitem__(self, index: slice | Sequence | Tensor | np.ndarray) -> "Detections": ...
    def __getitem__(self, index: Any) -> "Detection | Detections":
        if isinstance(index, (int, np.integer)) and not isinstance(index, bool):
            if not -len(self) <= index < len(self):
                raise IndexError(f"detection {index} of {len(self)}")
            x0, y0, x1, y1 = self.boxes[index].tolist()
            label = int(self.labels[index])
            return Detection((x0, y0, x1, y1), float(self.scores[index]), label, self._name(label))
        if not isinstance(index, slice):
            index = np.asarray(index.cpu() if isinstance(index, Tensor) else index)
            index = index.astype(np.int64) if index.size == 0 and index.dtype != bool else index
            if isinstance(self.scores, Tensor):
                index = torch.from_numpy(index).to(self.scores.device)
        return Detections(self.boxes[index], self.scores[index], self.labels[index], self.classes, self.image)

    def __repr__(self) -> str:
        if len(self) == 0:
            return "Detections(0)"
        shown = [
            f"{each.name} {each.score:.2f} at ({', '.join(f'{side:.1f}' for side in each.box)})"
            for each in (self[index] for index in range(min(len(self), SHOWN_IN_REPR)))
        ]
        rest = f", and {len(self) - SHOWN_IN_REPR} more" if len(self) > SHOWN_IN_REPR else ""
        return f"Detections({len(self)}: {', '.join(shown)}{rest})"

    def cpu(self) -> "Detections":
        """The same detections with tensors on the CPU."""
        return Detections(self.boxes.cpu(), self.scores.cpu(), self.labels.cpu(), self.classes, self.image)

    def numpy(self) -> "Detections":
        """The same detections with numpy arrays in place of tensors.

        Example:
            >>> found = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
            >>> type(found.numpy().boxes).__name__
            'ndarray'
        """
        boxes, scores, labels = (
            np.asarray(values.cpu() if isinstance(values, Tensor) else values) for values in self._arrays()
        )
        return Detections(boxes, scores, labels, self.classes, self.image)

    def to_dict(self) -> dict[str, list]:
        """Lists of boxes, scores, labels and names, which JSON can represent.

        Example:
            >>> found = Detections(torch.tensor([[1.0, 2, 3, 4]]), torch.tensor([0.5]), torch.tensor([0]), ["drone"])
            >>> found.to_dict()
            {'boxes': [[1.0, 2.0, 3.0, 4.0]], 'scores': [0.5], 'labels': [0], 'names': ['drone']}
        """
        boxes, scores, labels = (values.tolist() for values in self._arrays())
        return {"boxes": boxes, "scores": scores, "labels": labels, "names": self.names}

    def to_coco(self, image_id: int | str, category_ids: dict[str, int] | None = None) -> list[dict[str, Any]]:
        """The detections in COCO's result format, with boxes as [x, y, width, height].

        Args:
            image_id: of the image.
            category_ids: id of each class by its name; by default the label plus 1.

        Example:
            >>> found = Detections(torch.tensor([[1.0, 2, 3, 5]]), torch.tensor([0.5]), torch.tensor([0]), ["drone"])
            >>> found.to_coco(7)
            [{'image_id': 7, 'category_id': 1, 'bbox': [1.0, 2.0, 2.0, 3.0], 'score': 0.5}]
        """
        results = []
        for each in (self[index] for index in range(len(self))):
            x0, y0, x1, y1 = each.box
            box = [round(value, 3) for value in (x0, y0, x1 - x0, y1 - y0)]
            category = each.label + 1 if category_ids is None else category_ids[each.name]
            results.append({"image_id": image_id, "category_id": category, "bbox": box, "score": round(each.score, 6)})
        return results

    def to_supervision(self) -> Any:
        """The detections as ``supervision.Detections``, with the names of the classes in ``data["class_name"]``.

        Raises:
            ImportError: the package supervision is not installed (pip install supervision).
        """
        import supervision

        boxes, scores, labels = (np.asarray(values) for values in self.numpy()._arrays())
        return supervision.Detections(
            xyxy=boxes.reshape(-1, 4), confidence=scores, class_id=labels, data={"class_name": np.array(self.names)}
        )

    def plot(
        self, image: np.ndarray | str | os.PathLike | None = None, *, scores: bool = True, upscale: float = 1.0
    ) -> np.ndarray:
        """Draws the boxes into a copy of the image.

        Args:
            image: an array ``[H, W]`` or ``[H, W, 3]`` (BGR) of uint8 or uint16, or a path; by default
                ``self.image``.
            scores: draw the score beside the class name.
            upscale: enlargement of the image.

        Returns:
            uint8 BGR ``[H * upscale, W * upscale, 3]``.

        Raises:
            ValueError: no image is given and the detections do not know theirs.
            UserError: the path is no readable image.

        Example:
            >>> found = Detections(torch.tensor([[20.0, 30, 32, 38]]), torch.tensor([0.9]), torch.tensor([0]))
            >>> found.plot(np.zeros((64, 96), np.uint8), upscale=2).shape
            (128, 192, 3)
        """
        from danet.utils.drawing import draw_boxes, enlarge
        from danet.utils.image_io import read_image, to_display

        image = self.image if image is None else image
        if image is None:
            raise ValueError("Detections.plot: these detections do not keep their image; give it, as plot(image)")
        pixels = image if isinstance(image, np.ndarray) else read_image(image)
        boxes, shown, labels = (np.asarray(values) for values in self._arrays())
        canvas = enlarge(to_display(pixels), upscale)
        return draw_boxes(canvas, boxes * upscale, shown.tolist() if scores else None, labels.tolist(), self.classes)

    def save(self, path: str | os.PathLike, image: np.ndarray | str | os.PathLike | None = None) -> Path:
        """Writes the detections: .json as ``to_dict``, .csv as a table, any other suffix as a picture of ``plot``.

        Args:
            path: the file; it is replaced only when it is complete.
            image: as for ``plot``.

        Returns:
            The path.

        Raises:
            ValueError: see ``plot``.
            UserError: the file cannot be written.

        Example:
            >>> found = Detections(torch.tensor([[1.0, 2, 3, 4]]), torch.tensor([0.5]), torch.tensor([0]), ["drone"])
            >>> found.save(getfixture("tmp_path") / "boxes.csv").read_text().splitlines()
            ['class,score,x0,y0,x1,y1', 'drone,0.5,1.0,2.0,3.0,4.0']
        """
        from danet.utils.image_io import write_image

        path = Path(path)
        if path.suffix.lower() == ".json":
            write_json(path, self.to_dict())
        elif path.suffix.lower() == ".csv":
            text = io.StringIO()
            table = csv.writer(text, lineterminator="\n")
            table.writerow(("class", "score", "x0", "y0", "x1", "y1"))
            rows = (self[index] for index in range(len(self)))
            table.writerows((each.name, round(each.score, 4), *(round(side, 2) for side in each.box)) for each in rows)
            write_text(path, text.getvalue())
        else:
            write_image(path, self.plot(image))
        return path

    def _name(self, label: int) -> str:
        return str(label) if self.classes is None else self.classes[label]

    def _arrays(self) -> tuple[Any, Any, Any]:
        return self.boxes, self.scores, self.labels
