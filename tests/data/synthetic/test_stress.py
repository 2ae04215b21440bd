import cv2
import numpy as np
import pytest

from danet.data.coco_dataset import ImageRecord, load_coco, write_coco
from danet.data.synthetic import stress
from danet.data.synthetic.stress import CONTRAST_COUNTS, make_stress_set
from danet.data.synthetic.synthesize import MARKER_FILE, main
from danet.utils.errors import UserError


@pytest.fixture
def frames(tmp_path):
    """Frames of a camera that pans by 4 pixels per tenth of a second, each with one box and two earlier frames."""
    rng = np.random.default_rng(0)
    scene = cv2.GaussianBlur(rng.normal(120, 20, (200, 400)).astype(np.float32), (0, 0), 3)
    records = []
    for index in range(4):
        files = {}
        for lag in (0.0, 0.1, 0.5):
            left = 60 + 30 * index - round(40 * lag)
            files[lag] = tmp_path / f"in/{index}_{lag}.png"
            files[lag].parent.mkdir(exist_ok=True)
            cv2.imwrite(str(files[lag]), np.clip(scene[20:148, left : left + 160], 0, 255).astype(np.uint8))
        past = ((0.1, files[0.1]), (0.5, files[0.5]))
        boxes = np.array([[70, 50, 90, 60]], np.float32)
        records.append(ImageRecord(files[0.0], 160, 128, boxes, ["airplane"], np.zeros(1, bool), past=past))
    write_coco(tmp_path / "in/frames.json", records, ["airplane"])
    return records


def difference(record, other):
    """The signed difference of two images, float."""
    return np.float32(cv2.imread(str(record), 0)) - cv2.imread(str(other), 0)


@pytest.mark.parametrize("moving", [True, False])
def test_stress_set_adds_one_dim_target_to_each_frame(frames, tmp_path, moving):
    records = make_stress_set(frames, tmp_path / "out", 4, [1], moving=moving)
    assert [record.names for record in records] == [["ignore", "drone"]] * 4 + [["ignore"]] * 4
    for record, original in zip(records[:4], records[4:], strict=True):
        added = difference(record.path, original.path)
        x0, y0, x1, y1 = record.boxes[1]
        peak = np.unravel_index(added.argmax(), added.shape)
        assert CONTRAST_COUNTS[0] - 1 <= added.max() <= CONTRAST_COUNTS[1] + 1 and added.min() >= 0
        assert x0 <= peak[1] + 0.5 <= x1 and y0 <= peak[0] + 0.5 <= y1
        assert min(x1 - x0, y1 - y0) >= 3 / 1.5 and max(x1 - x0, y1 - y0) <= 10 * 1.5
        inside = added[max(int(y0) - 1, 0) : int(y1) + 2, max(int(x0) - 1, 0) : int(x1) + 2].sum()
        assert inside > 0.9 * added.sum()


def test_targets_move_against_the_background(frames, tmp_path, monkeypatch):
    monkeypatch.setattr(stress, "SPEED_PIXELS_PER_S", (60.0, 60.1))
    for moving in (True, False):
        compared = []
        records = make_stress_set(frames, tmp_path / str(moving), 4, [2], moving=moving)
        for record, original in zip(records[:4], records[4:], strict=True):
            peaks = []
            for seconds, path, other in [
                (0.0, record.path, original.path),
                *((lag, file, plain) for (lag, file), (_, plain) in zip(record.past, original.past, strict=True)),
            ]:
                added = difference(path, other)
                if added.max() > 0:
                    # The position on the background: the frame of ``seconds`` ago begins 40 * seconds further left.
                    y, x = np.unravel_index(added.argmax(), added.shape)
                    peaks.append((seconds, np.array([x - 40 * seconds, y])))
            assert peaks[0][0] == 0.0
            for seconds, place in peaks[1:]:
                distance = np.linalg.norm(place - peaks[0][1])
                assert distance == pytest.approx(60 * seconds if moving else 0, abs=2)
                compared.append(seconds)
        # A target of half a second ago may lie outside of the image.
        assert compared.count(0.1) == 4 and 0.5 in compared


def test_stress_set_leaves_out_earlier_frames_of_another_scene(frames, tmp_path):
    """The place of the target in such a frame is not known."""
    other = np.random.default_rng(9).integers(0, 255, (16, 20)).astype(np.uint8)
    cv2.imwrite(str(frames[0].past[1][1]), cv2.resize(other, (160, 128)))
    cv2.imwrite(str(frames[1].past[0][1]), np.zeros((64, 64), np.uint8))  # another size
    for moving in (True, False):
        found = make_stress_set(frames, tmp_path / str(moving), 4, [3], moving=moving)
        ages = sorted([age for age, _ in record.past] for record in found)
        assert ages == sorted([[0.1], [0.5], [0.1, 0.5], [0.1, 0.5]] * 2)
        for record in found:
            assert all(cv2.imread(str(file)).shape == (128, 160, 3) for _, file in record.past)


def test_stress_set_depends_only_on_the_seed(frames, tmp_path):
    first, again, other = (
        make_stress_set(frames, tmp_path / name, 4, seed, moving=True)
        for name, seed in (("a", [1]), ("b", [1]), ("c", [2]))
    )
    assert [record.boxes.tolist() for record in first] == [record.boxes.tolist() for record in again]
    assert [record.path.read_bytes() for record in first] == [record.path.read_bytes() for record in again]
    assert [record.boxes.tolist() for record in first] != [record.boxes.tolist() for record in other]


def test_stress_set_refuses_too_few_frames(frames, tmp_path):
    with pytest.raises(
        UserError, match="5 frames that have a place where a dim target is visible are needed, the dataset has 4"
    ):
        make_stress_set(frames, tmp_path / "out", 5, [0], moving=False)
    frames[0].past = ()
    with pytest.raises(
        UserError,
        match=r"4 frames that have earlier frames and a place where .* are needed, the dataset has 3",
    ):
        make_stress_set(frames, tmp_path / "out", 4, [0], moving=True)
    for _, file in frames[1].past:
        cv2.imwrite(str(file), np.zeros((64, 64), np.uint8))  # the shift from another size is not known
    with pytest.raises(
        UserError,
        match=r"4 frames that have earlier frames and a place where .* are needed, the dataset has 2",
    ):
        make_stress_set(frames, tmp_path / "out", 4, [0], moving=True)
    assert not (tmp_path / "out").exists()


def test_stress_set_leaves_out_frames_of_birds(frames, tmp_path):
    # Often, not every bird of a flock has a box, and a detection of such a bird would count as a false alarm.
    frames[2].names = ["bird"]
    made = make_stress_set(frames, tmp_path / "out", 3, [0], moving=False)
    used = {cv2.imread(str(record.path), 0).tobytes() for record in made[3:]}
    assert used == {cv2.imread(str(frames[index].path), 0).tobytes() for index in (0, 1, 3)}
    with pytest.raises(
        UserError,
        match=r"4 frames that have a place where .* are needed, the dataset has 3 \(frames with birds are not used\)",
    ):
        make_stress_set(frames, tmp_path / "again", 4, [0], moving=False)


def test_synthesize_writes_stress_sets(frames, tmp_path, capsys):
    source = str(tmp_path / "in/frames.json")
    assert main([str(tmp_path / "out"), "--stress", source, "--images", "3", "--quiet"]) == 0
    for name in ("moving", "still"):
        records = load_coco(tmp_path / f"out/{name}.json").records
        assert len(records) == 6 and all(len(record.past) == 2 for record in records)
        assert all(file.is_relative_to(tmp_path / "out") for record in records for _, file in record.past)
    assert main([str(tmp_path / "other"), "--stress", source, "--images", "9", "--quiet"]) == 2
    assert "9 frames" in capsys.readouterr().err and not (tmp_path / "other").exists()


def test_synthesize_keeps_the_frames_of_a_stress_set(frames, tmp_path, capsys):
    path = tmp_path / "in/frames.json"
    (path.parent / MARKER_FILE).touch()  # the frames were made by this command, too
    before = path.read_bytes()
    words = ["--stress", str(path), "--images", "2", "--overwrite"]
    for options, message in (
        ([str(tmp_path / "out"), "--json", str(path)], "is an input of this command"),
        ([str(path.parent)], "lies in the folder that is replaced"),
    ):
        assert main([*options, *words]) == 2
        assert message in capsys.readouterr().err
    assert path.read_bytes() == before and not (tmp_path / "out").exists()


def test_synthesize_keeps_the_images_that_it_reads(tmp_path, capsys):
    out = tmp_path / "out"
    assert main([str(out), "--images", "2", "--val_images", "0", "--size", "64x64", "--quiet"]) == 0
    records = load_coco(str(out / "train.json")).records
    write_coco(tmp_path / "list.json", records, ["drone", "bird", "leaf", "corner", "airplane"])
    assert main([str(out), "--stress", str(tmp_path / "list.json"), "--images", "1", "--overwrite", "--quiet"]) == 2
    assert "an image of it lies in the folder that is replaced" in capsys.readouterr().err
    assert all(record.path.is_file() for record in records)
