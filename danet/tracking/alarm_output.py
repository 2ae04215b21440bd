"""Writes alarms to a file, with a picture of each, and hands them to receivers."""

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2

from danet.tracking.alarms import AlarmEvent
from danet.tracking.delivery import Delivery
from danet.utils.growing_file import GrowingFile
from danet.utils.image_io import write_image

JPEG_QUALITY = 90


class AlarmOutput:
    """Context manager that writes ``alarms.jsonl`` and ``alarms/NUMBER.png``, and feeds ``Delivery`` objects.

    The file has one JSON object per event, as ``AlarmEvent.to_dict``, with the name of the picture as ``crop``. The end
    of an alarm replaces its picture by the best one. Pictures of an earlier run in the folder are removed. Receivers
    get the picture as JPEG in base64, as ``crop_jpeg``.

    Attributes:
        path: of the file.

    Args:
        out: folder of the results.
        deliveries: receivers; they run from the start to the end of the ``with`` block.

    Example:
        >>> with AlarmOutput(getfixture("tmp_path"), []) as output:
        ...     output.add([AlarmEvent("start", 1, "a.mp4", 9, 0.3, 2, "drone", 0.8, (1.0, 2.0, 5.0, 4.0), None, 0.2)])
        >>> len(output.path.read_text().splitlines())
        1
    """

    def __init__(self, out: Path, deliveries: Sequence[Delivery]) -> None:
        self.path = out / "alarms.jsonl"
        self._folder = out / "alarms"
        self._deliveries = list(deliveries)
        self._file = GrowingFile(self.path, "", visible=True)

    def __enter__(self) -> "AlarmOutput":
        # Remove the pictures of an earlier run, because none of its events refers to them any more.
        for picture in self._folder.glob("*.png") if self._folder.is_dir() else ():
            if picture.stem.isdecimal():
                picture.unlink()
        self._file.__enter__()
        for delivery in self._deliveries:
            delivery.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for delivery in self._deliveries:
            delivery.__exit__(*error)
        self._file.__exit__(*error)

    def add(self, events: Sequence[AlarmEvent]) -> None:
        """Writes and delivers events.

        Raises:
            UserError: the file or a picture cannot be written.
        """
        for event in events:
            record, message = event.to_dict(), event.to_dict()
            if event.crop is not None:
                picture = self._folder / f"{event.alarm}.png"
                write_image(picture, event.crop)
                record["crop"] = f"{self._folder.name}/{picture.name}"
                _, encoded = cv2.imencode(".jpg", event.crop, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
                message["crop_jpeg"] = base64.b64encode(encoded.tobytes()).decode("ascii")
            self._file.append(json.dumps(record) + "\n")
            for delivery in self._deliveries:
                delivery.put(message)
