"""Detections of a stream beside those of single frames."""

import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import danet
from danet.data.frame_sources import open_source
from danet.detections import Detections
from danet.inference.batch_detector import BatchDetector
from danet.inference.pipeline import SingleThreadedCalls
from danet.inference.stream import DetectionStream

needs_threads = pytest.mark.skipif(torch.get_num_threads() < 2, reason="torch has one thread")


def grouped_stream(**options):
    """A stream that computes groups of frames, as where the network takes all cores."""
    detector = danet.load(**options)
    detector(np.zeros((128, 160), np.uint8))  # the first call belongs to this thread
    stream = DetectionStream(detector)
    stream.has_free_core = False
    return stream


def write_frames(folder, count):
    """Grey frames with noise and a bright moving spot."""
    rng = np.random.default_rng(0)
    for i in range(count):
        image = rng.normal(90, 2, (128, 160)).astype(np.uint8)
        image[40:45, 20 + 5 * i : 29 + 5 * i] = 200
        cv2.imwrite(str(folder / f"{i:02d}.png"), image)


@needs_threads
@pytest.mark.parametrize("dtype", [torch.float32, "auto"])
def test_frames_that_are_computed_together_have_the_same_detections(tmp_path, dtype, monkeypatch):
    write_frames(tmp_path, 11)
    stream, calls = grouped_stream(score_threshold=0.01, dtype=dtype), []
    detector = stream.detector
    monkeypatch.setattr(SingleThreadedCalls, "submit", count_calls(SingleThreadedCalls.submit, calls))
    together = [found for _, found in stream.run(open_source(tmp_path))]
    assert len(calls) == 11
    detector.begin_source()
    for frame, found in zip(open_source(tmp_path), together, strict=True):
        alone = detector(frame.image)
        assert torch.equal(found.boxes, alone.boxes) and torch.equal(found.scores, alone.scores)
    assert any(len(found) for found in together)


@needs_threads
def test_frames_before_an_unreadable_one_are_detected(tmp_path, monkeypatch):
    """Also those whose networks run when the reader fails."""
    write_frames(tmp_path, 40)
    stream = grouped_stream()
    preprocess = BatchDetector.preprocess
    left = iter(range(35))

    def fail_at_frame_35(*arguments):
        if next(left, None) is None:
            raise ValueError("frame 35")
        return preprocess(*arguments)

    monkeypatch.setattr(BatchDetector, "preprocess", fail_at_frame_35)
    seen = []
    with pytest.raises(ValueError, match="frame 35"):
        seen.extend(frame.name for frame, _ in stream.run(open_source(tmp_path)))
    assert [Path(name).stem for name in seen] == [f"{i:02d}" for i in range(35)]


@needs_threads
def test_a_stream_that_is_left_early_ends_its_threads(tmp_path):
    write_frames(tmp_path, 40)
    stream, before = grouped_stream(), threading.active_count()
    results = stream.run(open_source(tmp_path))
    next(results)
    results.close()
    assert threading.active_count() == before


@needs_threads
def test_frames_that_are_too_few_for_all_threads_are_computed_in_all_threads(tmp_path, monkeypatch):
    write_frames(tmp_path, 1)
    stream, calls = grouped_stream(), []
    monkeypatch.setattr(SingleThreadedCalls, "submit", count_calls(SingleThreadedCalls.submit, calls))
    assert len(list(stream.run(open_source(tmp_path)))) == 1
    assert calls == []


def count_calls(function, calls):
    def counted(self, call, item):
        calls.append(item)
        return function(self, call, item)

    return counted


def test_frames_are_not_computed_together_if_hooks_observe_the_network(tmp_path, monkeypatch):
    write_frames(tmp_path, 4)
    detector = danet.load()
    detector(np.zeros((128, 160), np.uint8))
    threads = set()
    detector.model.network.backbone.register_forward_hook(lambda *_: threads.add(threading.get_ident()))
    stream = DetectionStream(detector)
    stream.has_free_core = False
    assert len(list(stream.run(open_source(tmp_path)))) == 4
    assert threads == {threading.get_ident()}


def test_tracking_takes_the_polarity_of_the_reported_classes(tmp_path, monkeypatch):
    """Trackers get all classes, but those that are not reported must not decide whether frames are inverted."""
    write_frames(tmp_path, 6)
    found = {"white": (0, 0.65), "black": (1, 0.95)}  # label and score: a drone, or a bird in inverted frames

    def detections(detector, polarity):
        label, score = found[polarity]
        box = torch.tensor([[10.0, 10, 20, 20]])
        return [Detections(box, torch.tensor([score]), torch.tensor([label]), detector.classes)]

    monkeypatch.setattr(BatchDetector, "_run", lambda detector, images, geometry, polarity: polarity)
    monkeypatch.setattr(BatchDetector, "_decode", detections)
    detector = danet.load()
    alone = [frame.names for _, frame in detector.stream(tmp_path)]
    tracked = [frame.names for _, frame, _ in detector.stream(tmp_path, tracker=danet.Tracker())]
    assert alone == tracked == [["drone"]] * 6
