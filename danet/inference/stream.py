"""Detections in images, videos and live sources, frame by frame; reading overlaps with the network."""

import contextlib
import itertools
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from danet.boxes import Detections
from danet.data.frame_sources import ImageFiles
from danet.data.video import Frame, Video
from danet.inference.frame_history import FrameHistory
from danet.inference.pipeline import GroupPrefetcher, Prefetcher, SingleThreadedCalls
from danet.inference.predict import FrameDetector, batches_of_equal_size
from danet.inference.tile_options import DEFAULT_TILE_EVERY
from danet.inference.tile_search import TileSearch
from danet.models.deployed import DeployedDANet
from danet.models.program import can_run_program
from danet.utils.threads import available_cores

PREFETCHED_BATCHES = 2
"""Batches that are read and preprocessed ahead of the network."""

MAX_GROUP_BATCHES = 16
MAX_GROUP_PIXELS = 1 << 20
"""Where the network takes all cores, batches are read and computed in groups. A group ends after MAX_GROUP_BATCHES
batches or MAX_GROUP_PIXELS pixels, whichever comes first. With many threads both limits are higher, so that each thread
can compute a batch."""


class FrameTracker(Protocol):
    """What follows targets from frame to frame: a ``danet.tracking.tracker.Tracker``."""

    cuts: int

    @property
    def score_threshold(self) -> float: ...
    @property
    def followed_boxes(self) -> np.ndarray: ...
    def begin_source(self, classes: Sequence[str] | None = None, /) -> None: ...
    def update_frame(self, frame: Frame, detections: Detections, /) -> Any: ...


class DetectionStream:
    """Runs a detector over all frames of a source, such as a folder, a video or a camera.

    Where the network leaves a core free, as on a GPU, a thread reads and preprocesses ahead of it. Where it takes all
    cores, such a thread would slow it down: several batches are then computed at the same time, in one thread each,
    while the batches after them are read and the caller handles the results of those before. A live source is always
    read in a thread, and frames that come too fast are dropped.

    Attributes:
        dropped: number of frames of live sources that were dropped.
        reading_seconds: time for reading and preprocessing, which may overlap with the network.
        network_seconds: time for the network and for decoding its output; where several batches are computed at the
            same time, their processor time divided by the number of threads.
        tracking_seconds: time of the tracker.
        has_free_core: whether a thread beside the network has a core of its own.

    Args:
        detector: what to run.
        batch: images that go through the network at once; live sources always have 1, and so have frames that are cut
            into tiles.
        tile_every: where frames are cut into tiles, every so many frames of a video are searched completely, and the
            frames between only around the targets. 1 searches every frame completely.

    Raises:
        ValueError: ``batch`` or ``tile_every`` is less than 1.

    Example:
        >>> import danet, numpy, tempfile
        >>> from danet.data.frame_sources import open_source
        >>> from danet.utils.image_io import write_image
        >>> stream = DetectionStream(danet.load())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_image(f"{folder}/a.png", numpy.zeros((64, 96), numpy.uint8))
        ...     [len(detections.scores) for frame, detections in stream.run(open_source(folder))]
        [0]
    """

    def __init__(self, detector: FrameDetector, *, batch: int = 1, tile_every: int = DEFAULT_TILE_EVERY) -> None:
        if batch < 1:
            raise ValueError(f"DetectionStream: batch must be at least 1, got {batch}")
        if tile_every < 1:
            raise ValueError(f"DetectionStream: tile_every must be at least 1, got {tile_every}")
        self.detector = detector
        self.batch = batch
        self.tile_every = tile_every
        self.dropped = 0
        self.reading_seconds = self.network_seconds = self.tracking_seconds = 0.0
        self.has_free_core = detector.device.type != "cpu" or available_cores() > torch.get_num_threads()

    def run(self, source: ImageFiles | Video) -> Generator[tuple[Frame, Detections], None, None]:
        """Yields each frame with its detections, in order. Closing the iterator ends the reading thread.

        The images of a folder do not continue each other, so that tiles search each of them completely.
        """
        return self._run(source, TileSearch(self.tile_every if isinstance(source, Video) else 1))

    def track(
        self, source: ImageFiles | Video, tracker: FrameTracker
    ) -> Generator[tuple[Frame, Detections, Any], None, None]:
        """Yields each frame with its detections and its tracks, in order.

        The tracker gets the detections of all classes, down to the score that it needs; those that are yielded are the
        same as of ``run``.
        """
        detector = self.detector
        self.detector = detector.with_thresholds(score=min(detector.score_threshold, tracker.score_threshold))
        tracker.begin_source(detector.reported_classes)
        try:
            with contextlib.closing(self._run(source, TileSearch(self.tile_every, tracker))) as frames:
                for frame, found in frames:
                    started = time.perf_counter()
                    tracks = tracker.update_frame(frame, found)
                    self.tracking_seconds += time.perf_counter() - started
                    yield frame, detector.select(found), tracks
        finally:
            self.detector = detector

    def _run(self, source: ImageFiles | Video, search: TileSearch) -> Generator[tuple[Frame, Detections], None, None]:
        """As ``run``; ``search`` chooses the tiles of each frame."""
        self.detector.begin_source()
        self._search = search
        live = isinstance(source, Video) and source.live
        batches = self._preprocess(source, 1 if live or self.detector.tiling is not None else self.batch)
        return self._prefetched(batches, live) if live or self.has_free_core else self._grouped(batches)

    def _prefetched(self, batches: Iterator[tuple], live: bool) -> Generator[tuple[Frame, Detections], None, None]:
        """Detects while a thread prepares the next batches."""
        with Prefetcher(batches, depth=PREFETCHED_BATCHES, drop=live) as prefetcher:
            try:
                for batch in prefetcher:
                    yield from self._detect(*batch)
            finally:
                self.dropped += prefetcher.dropped

    def _grouped(self, batches: Iterator[tuple]) -> Generator[tuple[Frame, Detections], None, None]:
        """Detects in groups of batches; the next group is prepared while the caller handles the results."""
        # Only our own network on the CPU runs in the threads of its caller. Tiles depend on the frame before.
        model = getattr(self.detector, "model", None)
        is_parallel = isinstance(model, DeployedDANet) and self.detector.tiling is None
        rounds = max(1, torch.get_num_threads() // 2) if is_parallel else 1

        def is_full(group: list[tuple]) -> bool:
            # The tiles of a frame depend on the targets in the frame before.
            if self.detector.tiling is not None and any(place.tiles is not None for place in group[-1][2]):
                return True
            pixels = sum(tensor[:, 0].numel() for _, tensor, _ in group)
            return len(group) >= max(MAX_GROUP_BATCHES, 4 * rounds) or pixels >= rounds * MAX_GROUP_PIXELS

        with (
            GroupPrefetcher(batches, is_full=is_full) as groups,
            SingleThreadedCalls() if is_parallel else contextlib.nullcontext() as calls,
        ):
            # Start the networks of the next group first, then yield the results of the previous group: the caller's
            # work and the networks overlap. A group that is too small for all threads is computed in the order of its
            # batches, each in all threads.
            remaining = iter(groups)
            started: list[tuple[list[Frame], Future]] = []
            while True:
                group, error = [], None
                try:
                    group = next(remaining, [])
                except Exception as caught:  # raised after the results of the frames before it
                    error = caught
                previous, started = started, []
                is_large = calls is not None and 1 < calls.workers <= len(group)
                if calls is not None and is_large and _is_independent(model, group[0][1]):
                    started = [(batch[0], calls.submit(self._forward, batch)) for batch in group]
                    groups.prefetch()
                yield from self._finish(previous)
                if error is not None:
                    raise error
                if not group:
                    return
                if not started:
                    detected = [self._detect(*batch) for batch in group]
                    groups.prefetch()
                    yield from itertools.chain.from_iterable(detected)

    def _forward(self, batch: tuple) -> tuple[tuple, float]:
        """The network's output for a batch, and its processor time; for a thread in which torch has one thread."""
        begin = time.thread_time()
        output = self.detector.forward(*batch[1:])
        return output, time.thread_time() - begin

    def _finish(self, started: list[tuple[list[Frame], Future]]) -> Iterator[tuple[Frame, Detections]]:
        """Waits for networks, and decodes their outputs in the order of the frames, because the polarity of a frame
        depends on those before."""
        for frames, call in started:
            output, seconds = call.result()
            begin = time.thread_time()
            detections = self.detector.postprocess(*output)
            self.network_seconds += (seconds + time.thread_time() - begin) / torch.get_num_threads()
            yield from zip(frames, detections, strict=True)

    def _preprocess(self, source: ImageFiles | Video, batch: int) -> Iterator[tuple[list[Frame], Tensor, list]]:
        started = time.perf_counter()
        history = FrameHistory(self.detector.lags)
        for frames in batches_of_equal_size(source, batch, lambda frame: frame.image.shape[:2]):
            past = [history.add(frame) for frame in frames]
            if history.missing:
                self.detector.tell_missing_frames(history.missing)
            prepared = frames, *self.detector.preprocess([frame.image for frame in frames], past)
            self.reading_seconds += time.perf_counter() - started
            yield prepared
            started = time.perf_counter()

    def _detect(self, frames: list[Frame], tensor: Tensor, geometry: list) -> list[tuple[Frame, Detections]]:
        started = time.perf_counter()
        geometry = [self._search.choose(place, (tensor.shape[2], tensor.shape[3])) for place in geometry]
        detections = self.detector.postprocess(*self.detector.forward(tensor, geometry))
        self._search.update(detections[-1])
        self.network_seconds += time.perf_counter() - started
        return list(zip(frames, detections, strict=True))


@torch.inference_mode()
def _is_independent(model: Any, images: Tensor) -> bool:
    """Whether the network may run in other threads than this one: only our own network on the CPU does.

    It may not if something in this thread observes it, such as autocast or a FLOP counter, or if it has forward hooks.
    The first call of the network, which builds its program, belongs to this thread too.
    """
    if not isinstance(model, DeployedDANet):
        return False
    return can_run_program(images) and model.program is not None and not model.program.has_hooks()
