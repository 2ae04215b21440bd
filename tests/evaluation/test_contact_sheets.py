import cv2
import numpy as np
from detections import TRUTH, found, record

from danet.evaluation.contact_sheets import CAPTION_LINE_PIXELS, TILE_PIXELS, ContactSheets, _caption
from danet.evaluation.mistakes import find_mistakes, without_second_tiles

CLASSES = ["drone", "bird"]
MISPLACED_TILE = (104, 104, 118, 118)


def evaluation(tmp_path, predictions, **fields):
    """Records of one drone at TRUTH each, their mistakes, and the sheets."""
    records = []
    for index, _ in enumerate(predictions):
        each = record([TRUTH], video=f"v{index}")
        each.path = tmp_path / f"{index:05}.png"
        cv2.imwrite(str(each.path), np.full((256, 320), 90, np.uint8))
        for name, value in fields.items():
            setattr(each, name, value)
        records.append(each)
    mistakes = find_mistakes(records, predictions, CLASSES, target="drone", threshold=0.5)
    return records, mistakes, ContactSheets(records, predictions, CLASSES, target="drone", threshold=0.5)


def test_misplaced_box_has_one_tile(tmp_path):
    elsewhere = (10, 10, 20, 20)
    _, mistakes, sheets = evaluation(tmp_path, [found([MISPLACED_TILE, elsewhere], [0.9, 0.8])])
    assert mistakes.causes() == {"misses": {"misplaced": 1}, "false_alarms": {"misplaced": 1, "background": 1}}
    assert [alarm.cause for alarm in without_second_tiles(mistakes.false_alarms, mistakes.misses)] == ["background"]
    assert len(without_second_tiles(mistakes.false_alarms, [])) == 2  # the miss is not shown
    sheet = sheets.worst(mistakes)
    assert 2 * TILE_PIXELS < sheet.shape[1] < 3 * TILE_PIXELS


def test_second_tiles_of_other_images_stay(tmp_path):
    _, mistakes, _ = evaluation(tmp_path, [found([MISPLACED_TILE], [0.9]), found([MISPLACED_TILE], [0.8])])
    assert len(without_second_tiles(mistakes.false_alarms, mistakes.misses[:1])) == 1


def test_captions_name_video_and_frame(tmp_path):
    _, mistakes, sheets = evaluation(tmp_path, [found()], video="IR_DRONE_001", frame=120)
    assert sheets._lines(mistakes.misses[0], "") == ["miss: not found", "IR_DRONE_001 frame 120"]
    _, mistakes, sheets = evaluation(tmp_path, [found([TRUTH, (0, 0, 9, 9)], [0.9, 0.75])], video=None)
    assert sheets._lines(mistakes.hits[0], "< 14 px: ") == ["< 14 px: hit, score 0.90", "00000.png"]
    assert sheets._lines(mistakes.false_alarms[0], "")[0] == "false alarm 0.75: background"


def test_caption_shortens_the_middle_of_a_long_name():
    tile = np.zeros((TILE_PIXELS, TILE_PIXELS, 3), np.uint8)
    caption = _caption(tile, [f"recording_{'x' * 90}_frame_123456"])
    assert caption.shape == (TILE_PIXELS + CAPTION_LINE_PIXELS + 4, TILE_PIXELS, 3)
    assert np.array_equal(caption, _caption(tile, [f"recording_{'x' * 40}y{'x' * 49}_frame_123456"]))
    assert not np.array_equal(caption, _caption(tile, [f"recording_{'x' * 90}_frame_123457"]))
    assert not np.array_equal(caption, _caption(tile, [f"recordinG_{'x' * 90}_frame_123456"]))


def test_sheets_have_a_legend(tmp_path):
    _, mistakes, sheets = evaluation(tmp_path, [found()] * 3)
    by_size, worst = sheets.by_size(mistakes, (14.0, 18.0)), sheets.worst(mistakes)
    for sheet in (by_size, worst):
        assert (np.ptp(sheet[:26].astype(int), axis=2) > 60).sum() > 2 * 100  # two colored squares
