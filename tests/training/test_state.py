import json
import math

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from danet.training.optimizer import average_weights
from danet.training.state import Progress, TrainingState
from danet.utils.errors import UserError


def make_state(scaler=False):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.AdamW(model.parameters())
    state = TrainingState(model, average_weights(model, 0.9), optimizer, torch.amp.GradScaler("cpu", enabled=scaler))
    model(torch.randn(4, 3)).square().sum().backward()
    optimizer.step()
    state.average.update_parameters(model)
    return state


@pytest.fixture(params=[False, True], ids=["plain", "scaled"])
def saved(request, tmp_path):
    """A saved state, its path, and a function that changes header and tensors of the file."""
    path = tmp_path / "last.safetensors"
    state = make_state(request.param)
    state.progress = Progress(6, 4, {"epoch": 2, "ap50": 0.5}, 3.5, 2)
    state.save(path, {"lr": 0.1})

    def change(edit):
        tensors = load_file(path)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        header = json.loads(metadata["header"])
        changed = edit(header, tensors)
        header = header if changed is None else changed
        save_file(tensors, path, {**metadata, "header": json.dumps(header)})

    return state, path, change, request.param


def test_state_is_restored(saved):
    state, path, _, scaled = saved
    other = make_state(scaled)
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter.zero_()
    other.load(path, {"lr": 0.1})
    assert other.progress == state.progress
    for name, value in state.model.state_dict().items():
        assert torch.equal(other.model.state_dict()[name], value)


def test_state_of_an_older_version_has_no_improved_epoch(saved):
    _, path, change, scaled = saved
    change(lambda header, _: header["progress"].pop("improved_epoch") and None)
    other = make_state(scaled)
    other.load(path, {"lr": 0.1})
    assert other.progress.improved_epoch == 2


WRONG = [-5, "x", None, True, [], "9" * 5000, 1e300, math.inf, math.nan, 2**80]
CASES = [
    *((name, value) for name in ("step", "finished_epoch_at", "seconds", "best", "improved_epoch") for value in WRONG),
    *((name, value) for name in ("step", "finished_epoch_at") for value in (30.5, {})),
]


@pytest.mark.parametrize(("name", "value"), CASES, ids=lambda value: repr(value)[:12])
def test_state_rejects_progress_of_other_types(saved, name, value):
    _, path, change, scaled = saved
    change(lambda header, _: header["progress"].update({name: value}))
    with pytest.raises(UserError, match=r"last\.safetensors: does not fit this model \(progress.*must") as error:
        make_state(scaled).load(path, {"lr": 0.1})
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


@pytest.mark.parametrize(
    "edit",
    [
        lambda header, _: [],
        lambda header, _: 3,
        lambda header, _: header.update(identity=[]),
        lambda header, _: header.update(progress=[1, 2]),
        lambda header, _: header.pop("progress") and None,
        lambda header, _: header["progress"].pop("step") and None,
        lambda header, _: header["progress"].update(more=1),
        lambda header, _: header["progress"]["best"].update(ap50="high"),
        lambda header, _: header["progress"]["best"].pop("ap50") and None,
        lambda header, _: header["progress"].update(finished_epoch_at=7),
        lambda header, tensors: tensors.update({"nothing": torch.zeros(1)}),
        lambda header, tensors: tensors.update({"other.part": torch.zeros(1)}),
        lambda header, tensors: tensors.update({"optimizer.exp_avg.9.weight": torch.zeros(1)}),
        lambda header, tensors: tensors.update({"optimizer.exp_avg.0.weight": torch.zeros(2)}),
        lambda header, tensors: tensors.update({"model.0.weight": torch.full((2, 3), math.nan)}),
        lambda header, tensors: tensors.update({"average.module.0.weight": torch.full((2, 3), math.inf)}),
        lambda header, tensors: tensors.update({"model.0.weight": torch.zeros(3, 3)}),
        lambda header, tensors: tensors.pop("model.0.bias") is None or None,
    ],
)
def test_state_rejects_other_headers_and_tensors(saved, edit):
    _, path, change, scaled = saved
    change(edit)
    with pytest.raises(UserError, match=r"last\.safetensors: (does not fit this model|not a readable)") as error:
        make_state(scaled).load(path, {"lr": 0.1})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("scaler", [None, [], {}, {"scale": 1.0}, "x"])
def test_state_rejects_another_scaler(saved, scaler):
    _, path, change, scaled = saved
    change(lambda header, _: header.update(scaler=scaler))
    if not scaled:
        make_state(scaled).load(path, {"lr": 0.1})  # the scaler is not used
        return
    with pytest.raises(UserError, match="scaler must"):
        make_state(scaled).load(path, {"lr": 0.1})
