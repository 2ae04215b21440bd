import numpy as np
import pytest

from danet.tracking.annotated_tracks import AnnotatedTracks
from danet.tracking.tracks import Track, Tracks

IMAGE = np.full((60, 80), 40, np.uint8)
CLASSES = ["drone", "bird"]


def track(number, score, label, left=10.0, trail=()):
    box = (left, 40.0, left + 8, 46.0)
    return Track(number, box, score, label, CLASSES[label], (0.0, 0.0), True, 5, 0.5, trail=trail)


def drawn(picture, upscale=1):
    """Mask of the pixels that differ from the enlarged frame."""
    assert picture.shape == (60 * upscale, 80 * upscale, 3)
    return (picture != 40).any(2)


def test_to_detections_sorts_by_score_and_keeps_classes():
    found = Tracks([track(1, 0.5, 0, 10.0), track(2, 0.9, 1, 30.0), track(3, 0.7, 0, 50.0)], CLASSES).to_detections()
    assert found.scores.tolist() == pytest.approx([0.9, 0.7, 0.5]) and found.labels.tolist() == [1, 0, 0]
    assert found.boxes[:, 0].tolist() == [30.0, 50.0, 10.0] and found.classes == CLASSES


def test_slices_are_tracks_with_the_classes():
    tracks = Tracks([track(1, 0.5, 0), track(2, 0.9, 1)], CLASSES)
    assert tracks[1:].ids == [2] and tracks[1:].classes == CLASSES and tracks[0].id == 1


def test_dicts_hold_every_field_but_the_trail():
    (item,) = Tracks([track(7, 0.12345, 1, trail=((1.0, 2.0),))], CLASSES).to_dict()
    assert item == {
        "id": 7, "class": "bird", "score": 0.1235, "box": [10.0, 40.0, 18.0, 46.0], "velocity": [0.0, 0.0],
        "detected": True, "hits": 5, "age": 0.5,
    }  # fmt: skip


@pytest.mark.parametrize("upscale", [1, 2])
def test_plot_draws_boxes_and_trails_in_pixels_of_the_enlarged_frame(upscale):
    tracks = Tracks([track(1, 0.5, 0, 10.0, trail=((70.0, 5.0), (70.0, 55.0)))], CLASSES)
    with_trail = drawn(tracks.plot(IMAGE, upscale=upscale), upscale)
    without = drawn(tracks.plot(IMAGE, upscale=upscale, trails=False), upscale)
    trail = (with_trail & ~without).nonzero()
    assert trail[0].min() == pytest.approx(5 * upscale, abs=3) and trail[0].max() == pytest.approx(55 * upscale, abs=3)
    assert np.abs(trail[1] - 70 * upscale).max() <= 3
    # The corners of the box and nothing far from the box and its text are drawn.
    assert without[40 * upscale - 2 : 40 * upscale + 3, 10 * upscale - 2 : 10 * upscale + 3].any()
    assert not without[:, 60 * upscale :].any()
    assert (IMAGE == 40).all(), "the frame is not changed"


def test_plot_without_tracks_is_the_frame():
    assert not drawn(Tracks([], CLASSES).plot(IMAGE)).any()


@pytest.mark.parametrize("show_trails", [True, False])
@pytest.mark.parametrize("show_scores", [True, False])
def test_annotated_tracks_draw_as_plot_does(show_trails, show_scores):
    tracks = Tracks([track(1, 0.5, 0, trail=((20.0, 5.0), (60.0, 5.0)))], CLASSES)
    output = AnnotatedTracks(CLASSES, show_trails=show_trails, show_scores=show_scores, upscale=None)
    expected = tracks.plot(IMAGE, scores=show_scores, upscale=4.0, trails=show_trails)
    assert np.array_equal(output.draw(IMAGE, tracks), expected), "a frame of 60 rows is enlarged four times"
    other = tracks.plot(IMAGE, scores=not show_scores, upscale=4.0, trails=show_trails)
    assert not np.array_equal(expected, other)
