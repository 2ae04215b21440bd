"""Helpers of several test modules."""

from pathlib import Path

import torch


def randomise_norms(module: torch.nn.Module) -> None:
    """Sets random statistics, scales and biases: a new norm is nearly the identity, which would hide errors."""
    for norm in module.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
            torch.nn.init.uniform_(norm.bias, -0.5, 0.5)
            torch.nn.init.uniform_(norm.running_mean, -0.5, 0.5)
            torch.nn.init.uniform_(norm.running_var, 0.5, 2.0)


def spread_scores(model: torch.nn.Module) -> torch.nn.Module:
    """Spreads the scores of a new detector over 0 to 1, so that random weights give detections and tracks."""
    with torch.no_grad():
        for level in model.head.classify:
            level[1].weight *= 60
            level[1].bias.fill_(-4.0)
    return model


def check_that_lists_need_different_names(run, source: Path, out: Path, capsys) -> None:
    """Checks that an importer refuses two lists of images that would become the same json."""
    for name in "ab":
        (source / name).mkdir()
        (source / name / "train.txt").write_text(name)
    assert run(source, "--lists", "a/train.txt", "b/train.txt") == 2
    assert "--lists: a/train.txt and b/train.txt would both become train.json" in capsys.readouterr().err
    assert not out.exists()
