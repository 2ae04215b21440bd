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
    """Arguments of a small ablation: one seed, two steps of danet_nano."""
    fit, val, tune = scenes
    small = ["--model.name", "danet_nano", "--augmentation.crop", "64x64", "--threads", "1", "--no-plots"]
    words = [val, "--tune", tune, "--out", str(tmp_path / "out"), "--seeds", "0", "--resamples", "20", "--quiet"]
    return [*words, "--", *small, "--data", fit, "--epochs", "1", "--batch", "4"]


def with_words(command, *words):
    """The command with further options of ``danet ablate``."""
    at = command.index("--")
    return [*command[:at], *words, *command[at:]]


def only_error(capsys) -> str:
    output = capsys.readouterr()
    lines = output.err.strip().splitlines()
    assert len(lines) == 1, output.err
    return lines[0].removeprefix("danet ablate: error: ")


def test_ablate_compares_rows_and_resumes(command, tmp_path, capsys):
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

    # The same command again: nothing is trained or evaluated.
    names = ("train.json", "evaluate.json", "metrics.csv", "weights.safetensors")
    files = [out / row / "0" / name for row in ("baseline", "safem+acfa+adcr") for name in names]
    before = [path.stat().st_mtime_ns for path in files]
    assert main(with_words(command, *rows)) == 0
    assert [path.stat().st_mtime_ns for path in files] == before
    assert json.loads((out / "ablation.json").read_text())["rows"] == content["rows"]

    # An interrupted run is resumed and the others stay; another criterion trains nothing.
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

    # Other training options are another ablation.
    capsys.readouterr()
    assert main([*with_words(command, *rows), "--epochs", "2"]) == 2
    assert f"{out / 'baseline' / '0'}: holds a run with epochs 1, not 2; give another --out" in only_error(capsys)
    assert main([*with_words(command, *rows), "--max_minutes", "90"]) == 2
    assert "holds a run with max_minutes null, not 90.0; give another --out" in only_error(capsys)


@pytest.fixture
def folded(command, scenes):
    """Arguments of a cross-validation with two folds; each recording has two images."""
    for path in scenes[:2]:
        data = load_coco(path)
        for index, record in enumerate(data.records):
            record.recording = f"{path} {index // 2}"
        write_coco(path, data.records, data.categories)
    at = command.index("--tune")
    return with_words([*command[:at], *command[at + 2 :]], "--folds", "2", "--rows", "baseline")


def test_folds_evaluate_every_recording_once_and_unseen(folded, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(folded) == 0
    content = json.loads((out / "ablation.json").read_text())
    assert content["images"] == 16 and content["folds"] == 2 and content["rows"][0]["seeds"] == [0]
    assert len(content["runs"][0]["thresholds"]) == 2
    assert "Cross-validation: 2 folds" in (out / "ablation.md").read_text()
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

    # The same command again: nothing is repeated, and the interrupted run is resumed.
    kept, lost = (out / f"fold{index}" / "baseline" / "0" / "weights.safetensors" for index in (0, 1))
    before = kept.stat().st_mtime_ns
    for name in ("train.json", "evaluate.json", "weights.safetensors"):
        lost.with_name(name).unlink()
    assert main(folded) == 0
    assert kept.stat().st_mtime_ns == before and lost.is_file()

    # Other folds are another ablation: runs on them would be confused with these.
    capsys.readouterr()
    assert main(with_words(folded, "--folds", "3")) == 2
    assert f"{out / 'fold0' / 'train.json'}: has other images than this ablation; give" in only_error(capsys)
    assert len(load_coco(out / "fold0" / "val.json").records) == 8


def test_folds_train_with_mapped_class_names(folded, scenes, tmp_path):
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
        (["--folds", "8"], "--folds: fold 0 of 8 has no 'drone' to train on; use fewer folds"),
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
def test_bad_fold_options_are_one_line_and_write_nothing(folded, scenes, tmp_path, capsys, words, error):
    if "8" in words:  # drones in one recording only
        for path in scenes[:2]:
            data = load_coco(path)
            for record in data.records[2 if path == scenes[0] else 0 :]:
                record.names = ["bird" for _ in record.names]
            write_coco(path, data.records, data.categories)
    assert main(with_words(folded, *(word.replace("VAL", scenes[1]) for word in words))) == 2
    assert error in only_error(capsys)
    assert not (tmp_path / "out").exists()


def test_folds_reject_an_image_in_both_datasets(folded, scenes, tmp_path, capsys):
    assert main([*folded, "--data", scenes[1]]) == 2
    assert "occurs twice in the evaluation and training data" in only_error(capsys)
    assert not (tmp_path / "out").exists()


def test_row_arguments_of_danet_train():
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
def test_bad_ablate_options_are_one_line(command, tmp_path, capsys, words, error):
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
def test_bad_train_arguments_are_one_line(command, scenes, tmp_path, capsys, words, error):
    assert main([*command, *(word.replace("VAL", scenes[1]) for word in words)]) == 2
    assert error in only_error(capsys)
    assert not (tmp_path / "out").exists()


def test_json_replaces_no_dataset(command, scenes, tmp_path, capsys):
    for path in scenes:
        assert main(with_words(command, "--json", path)) == 2
        assert only_error(capsys).startswith(f"{path}: is an input of this command")
        assert load_coco(path).records
    assert not (tmp_path / "out").exists()


def test_missing_training_data_is_reported(scenes, capsys):
    assert main([scenes[1]]) == 2
    assert only_error(capsys).startswith("no training data: give the options of `danet train` after --")
