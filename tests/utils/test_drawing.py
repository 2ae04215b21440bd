import numpy as np
import pytest

from danet.utils.drawing import PALETTE, contact_sheet, draw_boxes, enlarge


def test_draw_boxes_leaves_the_target_and_a_margin_visible():
    image = np.full((64, 80), 100, np.uint8)
    image[30:33, 40:44] = 255
    drawn = draw_boxes(image, np.array([[40, 30, 44, 33]]), scores=[0.9])
    assert drawn.shape == (64, 80, 3) and drawn.dtype == np.uint8
    # The box and one pixel around it are unchanged; the line runs just outside.
    assert np.array_equal(drawn[29:34, 39:45], np.repeat(image[29:34, 39:45, None], 3, axis=2))
    assert tuple(drawn[28, 42]) == PALETTE[0] and tuple(drawn[34, 42]) == PALETTE[0]
    assert tuple(drawn[31, 38]) == PALETTE[0] and tuple(drawn[31, 45]) == PALETTE[0]
    assert (image == 100).sum() + 12 == image.size, "the input image is not drawn on"


def test_draw_boxes_colours_classes_and_greys_distractors():
    boxes = np.array([[10, 30, 20, 40], [40, 30, 50, 40], [70, 30, 80, 40]])
    drawn = draw_boxes(np.zeros((64, 100), np.uint8), boxes, labels=[0, 1, -1], names=["drone", "bird"])
    assert tuple(drawn[28, 15]) == PALETTE[0]
    assert tuple(drawn[28, 45]) == PALETTE[1]
    assert len(set(drawn[28, 75])) == 1
    own = draw_boxes(np.zeros((64, 100), np.uint8), boxes, colors=[(1, 2, 3)])
    assert tuple(own[28, 15]) == tuple(own[28, 45]) == (1, 2, 3)


@pytest.mark.parametrize("corner", [(0, 0), (70, 0), (0, 52), (70, 52)])
def test_draw_boxes_keeps_text_inside_the_image(corner):
    x, y = corner
    box = np.array([[x, y, x + 10, y + 12]], float)
    image = np.zeros((64, 80), np.uint8)
    plain = draw_boxes(image, box)
    inside = draw_boxes(image, box, scores=[0.5], labels=[0], names=["drone"])
    # In the middle of a large image the whole text fits.
    shift = np.array([200, 200, 200, 200], float)
    large = np.zeros((464, 480), np.uint8)
    free = draw_boxes(large, box + shift, scores=[0.5], labels=[0], names=["drone"])
    ink = (inside.max(2) > 100).sum() - (plain.max(2) > 100).sum()
    all_ink = (free.max(2) > 100).sum() - (draw_boxes(large, box + shift).max(2) > 100).sum()
    assert ink == pytest.approx(all_ink, rel=0.3) and ink > 30


def test_draw_boxes_separates_the_texts_of_neighbours():
    one = np.array([[100, 100, 112, 108]], float)
    two = np.array([[100, 100, 112, 108], [104, 114, 116, 122]], float)
    image = np.zeros((256, 320), np.uint8)

    def ink(boxes):
        names = ["drone"]
        texts = draw_boxes(image, boxes, labels=[0] * len(boxes), names=names).max(2) > 100
        return texts.sum() - (draw_boxes(image, boxes).max(2) > 100).sum()

    assert ink(two) == pytest.approx(2 * ink(one), rel=0.15)


def test_draw_boxes_without_boxes_and_16_bit():
    image = np.random.default_rng(0).integers(8000, 9000, (40, 50)).astype(np.uint16)
    drawn = draw_boxes(image, np.zeros((0, 4)), scores=[], labels=[], names=["drone"])
    assert drawn.dtype == np.uint8 and drawn.std() > 40, "14-bit values are stretched to 8 bits"


def test_draw_boxes_clips_a_box_to_the_image():
    drawn = draw_boxes(np.zeros((30, 40), np.uint8), np.array([[-5, -5, 60, 50]]))
    assert tuple(drawn[0, 20]) == tuple(drawn[29, 20]) == tuple(drawn[15, 0]) == tuple(drawn[15, 39]) == PALETTE[0]


def test_enlarge_scales_coordinates():
    image = np.zeros((20, 30, 3), np.uint8)
    image[5:10, 10:20] = 200
    large = enlarge(image, 4)
    assert large.shape == (80, 120, 3)
    assert large[22:38, 42:78].min() > 150 and large[:12].max() == 0
    assert enlarge(image, 1) is image
    assert enlarge(image, 0.5).shape == (10, 15, 3)


def test_contact_sheet_places_tiles_in_rows():
    tiles = [np.full((20, 30), 100 + index, np.uint8) for index in range(5)]
    tiles[4] = np.full((10, 12, 3), 250, np.uint8)
    sheet = contact_sheet(tiles, 2)
    assert sheet.shape == (3 * 24 + 4, 2 * 34 + 4, 3)
    assert (sheet[4:24, 4:34] == 100).all() and (sheet[4:24, 38:68] == 101).all() and (sheet[28:48, 4:34] == 102).all()
    assert (sheet == 250).all(2).sum() == 120, "the smaller tile appears once, in its own size"


def test_contact_sheet_shortens_long_titles():
    tiles = [np.zeros((20, 60), np.uint8)] * 2
    sheet = contact_sheet(tiles, 2, ["a title that is far too long for it", ""])
    empty = contact_sheet(tiles, 2, ["", ""])
    changed = np.flatnonzero((sheet != empty).any((0, 2)))
    assert len(changed) > 20 and changed.max() < 4 + 60 + 4
    assert contact_sheet(tiles, 7).shape[1] == 2 * 64 + 4, "no empty columns"
    with pytest.raises(ValueError, match="no tiles"):
        contact_sheet([], 3)


@pytest.mark.parametrize("name", ["drone\ud800", "a\nb", "\x1b[31mred", "[bold]drone[/bold]", "无人机", ""])
def test_drawing_accepts_any_name(name):
    image, box = np.zeros((120, 160), np.uint8), np.array([[40, 30, 50, 38]])
    plain = draw_boxes(image, box)
    drawn = draw_boxes(image, box, scores=[0.5], labels=[0], names=[name])
    assert drawn.shape == plain.shape and not np.array_equal(drawn, plain)
    assert contact_sheet([drawn], 1, [name]).shape[0] > 120
