import json

import cv2
import pytest
from scenes import write_scenes

from danet.ablate import main
from danet.data.coco_dataset import load_coco, write_coco
from danet.evaluation.ablate_options import AblateOptions
from danet.utils.errors import UserError


@pytest.fixture
def scenes(tmp_path):
    return [
        str(write_scenes(tmp_path / "data" / name, 8, seed=seed)) for seed, name in enumerate(("fit", "val", "tune"))
    ]


@pytest.fixture
def command(scenes, tmp_path):
    """Words of a small ablation: two rows, one seed, two steps of danet_nano."""
    fit, val, tune = scenes
    small = ["--model.name", "danet_nano", "--augmentation.crop", "64x64", "--threads", "1"]
    words = [val, "--tune", tune, "--out", str(tmp_path / "out"), "--seeds", "0", "--resamples", "20", "--quiet"]
    return [*words, "--", *small, "--data", fit, "--epochs", "1", "--batch", "4"]


def with_words(command, *words):
    """The command with more options of its own."""
    at = command.index("--")
    return [*command[:at], *words, *command[at:]]


def only_error(capsys) -> str:
    output = capsys.readouterr()
    lines = output.err.strip().splitlines()
    assert len(lines) == 1, output.err
    return lines[0].removeprefix("danet ablate: error: ")


def test_two_rows_are_trained_measured_compared_and_not_repeated(command, tmp_path, capsys):
    out = tmp_path / "out"
    rows = ["--rows", "baseline", "safem+acfa+adcr"]
    assert main(with_words(command, *rows)) == 0
    content = json.loads((out / "ablation.json").read_text())
    assert [row["name"] for row in content["rows"]] == ["baseline", "safem+acfa+adcr"]
    baseline, full = content["rows"]
    assert baseline["parameters"] < full["parameters"] and baseline["steps"] == full["steps"] == 2
    assert [(d["row"], d["against"], d["seeds"]) for d in content["differences"]] == [
        ("safem+acfa+adcr", "baseline", [0])
    ]
    assert content["images"] == 8 and content["distractors"] == {}  # every scene shows a drone
    header = (out / "baseline" / "0" / "metrics.csv").read_text().split("\n")[0]
    assert "adcr" not in header
    assert ",cls,reg,adcr,grad_norm" in (out / "safem+acfa+adcr" / "0" / "metrics.csv").read_text()
    assert cv2.imread(str(out / "ablation.png")).shape[0] > 200
    text = (out / "ablation.md").read_text()
    assert text.startswith("# Ablation\n") and "| safem+acfa+adcr | 1 |" in text

    # The same again: nothing is trained or measured anew.
    names = ("train.json", "evaluate.json", "metrics.csv", "weights.safetensors")
    files = [out / row / "0" / name for row in ("baseline", "safem+acfa+adcr") for name in names]
    before = [path.stat().st_mtime_ns for path in files]
    assert main(with_words(command, *rows)) == 0
    assert [path.stat().st_mtime_ns for path in files] == before
    assert json.loads((out / "ablation.json").read_text())["rows"] == content["rows"]

    # A run that was cut off goes on, and the others are left alone; another measurement trains nothing.
    folder = out / "safem+acfa+adcr" / "0"
    for name in ("train.json", "evaluate.json", "weights.safetensors"):
        (folder / name).unlink()
    losses = (folder / "metrics.csv").read_text()
    copy = tmp_path / "copy.json"
    assert main(with_words(command, *rows, "--criterion", "iou30", "--json", str(copy))) == 0
    assert copy.read_text() == (out / "ablation.json").read_text()
    assert (folder / "metrics.csv").read_text() == losses and (folder / "weights.safetensors").exists()
    assert files[0].stat().st_mtime_ns == before[0] and files[1].stat().st_mtime_ns > before[1]
    assert json.loads((out / "ablation.json").read_text())["criterion"] == "iou30"

    # Another budget is another ablation.
    capsys.readouterr()
    assert main([*with_words(command, *rows), "--epochs", "2"]) == 2
    assert f"{out / 'baseline' / '0'}: holds a run with epochs 1, not 2; give another --out" in only_error(capsys)


@pytest.fixture
def folded(command, scenes):
    """The words of a cross-validation in two parts; each recording has two images."""
    for path in scenes[:2]:
        data = load_coco(path)
        for index, record in enumerate(data.records):
            record.recording = f"{path} {index // 2}"
        write_coco(path, data.records, data.categories)
    at = command.index("--tune")
    return with_words([*command[:at], *command[at + 2 :]], "--folds", "2", "--rows", "baseline")


def test_folds_measure_every_recording_once_by_runs_that_did_not_see_it(folded, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(folded) == 0
    content = json.loads((out / "ablation.json").read_text())
    assert content["images"] == 16 and content["folds"] == 2 and content["rows"][0]["seeds"] == [0]
    assert len(content["runs"][0]["thresholds"]) == 2
    assert "Cross-validation: 2 parts" in (out / "ablation.md").read_text()
    measured = []
    for fold in (out / "fold0", out / "fold1"):
        recordings = {}
        for name in ("train", "tune", "val"):
            records = load_coco(fold / f"{name}.json").records
            recordings[name] = {record.recording for record in records}
            assert len(records) == 2 * len(recordings[name])
        assert sum(map(len, recordings.values())) == 8 == len(set.union(*recordings.values()))
        measured += recordings["val"]
        options = json.loads((fold / "baseline" / "0" / "evaluate.json").read_text())["options"]
        assert options["data"] == str(fold / "val.json")
        trained = (fold / "baseline" / "0" / "config.yaml").read_text()
        assert f"- {fold / 'train.json'}\n" in trained and "fit" not in trained
    assert len(measured) == 8 == len(set(measured))

    # The same again: nothing is trained or measured anew, and what was cut off goes on.
    kept, lost = (out / f"fold{index}" / "baseline" / "0" / "weights.safetensors" for index in (0, 1))
    before = kept.stat().st_mtime_ns
    for name in ("train.json", "evaluate.json", "weights.safetensors"):
        lost.with_name(name).unlink()
    assert main(folded) == 0
    assert kept.stat().st_mtime_ns == before and lost.is_file()

    # Other parts are another ablation: their runs would be taken for runs on these.
    capsys.readouterr()
    assert main(with_words(folded, "--folds", "3")) == 2
    assert f"{out / 'fold0' / 'train.json'}: other images than those of this ablation; give" in only_error(capsys)
    assert len(load_coco(out / "fold0" / "val.json").records) == 8


def test_folds_train_on_the_names_that_are_measured(folded, scenes, tmp_path):
    data = load_coco(scenes[1])
    for record in data.records:
        record.names = ["Target" if name == "drone" else name for name in record.names]
    write_coco(scenes[1], data.records, ["Target", "bird"])
    assert main(with_words(folded, "--class_map", '{"Target": "drone"}')) == 0
    names = {name for record in load_coco(tmp_path / "out/fold0/train.json").records for name in record.names}
    assert names == {"drone", "bird"}


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--folds", "1"], "--folds must be 2 or more, got 1"),
        (["--tune", "x"], "--tune x: cannot be used with --folds"),
        (["--teacher_small", "x"], "--folds: cannot be used with teachers, which were trained on evaluated recordings"),
        (["--folds", "40"], "40 parts cannot be made of 8 recordings"),
        (["--folds", "8"], "folds: part 0 of 8 has no 'drone' to train on; give fewer parts"),
        (["--target", "plane"], "show no 'plane'; see --target and --class_map"),
        (
            ["--more", '{"x": ["--data", "VAL"]}'],
            "x: --data cannot be used with --folds; all rows are trained on the same data",
        ),
        (
            ["--more", '{"x": ["--weights", "shipped"]}'],
            "x: --weights cannot be used with --folds; it may leak evaluated recordings",
        ),
        (
            ["--more", '{"x": ["--val", "y.json"]}'],
            "x: --val cannot be used with --folds; it may leak evaluated recordings",
        ),
    ],
)
def test_bad_options_of_folds_are_one_line_and_leave_nothing(folded, scenes, tmp_path, capsys, words, error):
    if "8" in words:  # drones in one recording only
        for path in scenes[:2]:
            data = load_coco(path)
            for record in data.records[2 if path == scenes[0] else 0 :]:
                record.names = ["bird" for _ in record.names]
            write_coco(path, data.records, data.categories)
    assert main(with_words(folded, *(word.replace("VAL", scenes[1]) for word in words))) == 2
    assert error in only_error(capsys)
    assert not (tmp_path / "out").exists()


def test_an_image_that_is_measured_and_trained_on_is_refused(folded, scenes, tmp_path, capsys):
    assert main([*folded, "--data", scenes[1]]) == 2
    assert "is there twice, in what is measured and in the training data" in only_error(capsys)
    assert not (tmp_path / "out").exists()


def test_rows_say_what_danet_train_is_told():
    rows = AblateOptions("v", adcr_weight=0.2).row_arguments()
    assert list(rows) == ["baseline", "safem", "acfa", "adcr", "safem+acfa", "safem+acfa+adcr"]
    assert rows["baseline"] == ["--model.safem", "false", "--model.acfa", "false", "--adcr.weight", "0.0"]
    assert rows["safem+acfa+adcr"] == ["--model.safem", "true", "--model.acfa", "true", "--adcr.weight", "0.2"]
    teachers = {"teacher_small": "s.safetensors", "teacher_large": "l.safetensors"}
    rows = AblateOptions("v", **teachers, more={"wide": ["--model.name", "danet"]}).row_arguments()
    assert len(rows) == 10 and rows["wide"] == ["--model.name", "danet"]
    assert rows["sskd"][-8:] == [
        *("--distill.weight", "0.05", "--distill.batch", "null"),
        *("--distill.small", "s.safetensors", "--distill.large", "l.safetensors"),
    ]
    with pytest.raises(UserError, match="--rows safem\\+sskd: sskd needs teachers; give --teacher_small"):
        AblateOptions("v", rows=["safem+sskd"]).row_arguments()


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--rows", "safem+safem"], "--rows safem+safem: must be baseline, or some of safem, acfa, adcr, sskd joined"),
        (["--rows", "fpn"], "--rows fpn: must be"),
        (["--rows", "sskd"], "--rows sskd: sskd needs teachers"),
        (["--seeds", "1", "1"], "--seeds must be one or more distinct integers from 0 on"),
        (["--recall", "0"], "--recall must lie between 0 and 1, got 0"),
        (["--adcr_weight", "0"], "--adcr_weight must be positive, got 0"),
        (["--more", '{"baseline": []}'], "--more 'baseline': must be a new row name that is a valid folder name"),
        (["--more", '{"../x": []}'], "--more '../x': must be a new row name that is a valid folder name"),
        (["--target", "plane"], "shows no 'plane'"),
    ],
)
def test_bad_options_are_one_line(command, tmp_path, capsys, words, error):
    assert main(with_words(command, *words)) == 2
    assert error in only_error(capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--epoch", "3"], "unknown option --epoch; did you mean --epochs?"),
        (["--lr", "-1"], "lr must be positive, got -1"),
        (["--val", "VAL"], "the best epoch would be chosen on it"),
        (["--distill.small", "x"], "give teachers as --teacher_small"),
    ],
)
def test_bad_words_for_train_are_one_line(command, scenes, tmp_path, capsys, words, error):
    assert main([*command, *(word.replace("VAL", scenes[1]) for word in words)]) == 2
    assert error in only_error(capsys)
    assert not (tmp_path / "out").exists()


def test_no_training_data_is_said(scenes, capsys):
    assert main([scenes[1]]) == 2
    assert only_error(capsys).startswith("no training data: give the options of `danet train` after --")
