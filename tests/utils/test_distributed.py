"""Distributed helpers with ADCR as the loss. torchrun runs this file as the program of each process."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from danet.data.loader import Batch
from danet.losses import ADCR
from danet.utils import distributed

IMAGES = 4
# Drones (0) and birds (1). Each process gets every other image; the second one gets no drone.
TARGETS = [
    [([10, 12, 24, 22], 0), ([50, 30, 61, 41], 0), ([70, 5, 80, 14], 1)],
    [([8, 40, 20, 50], 1)],
    [([33, 21, 44, 32], 0)],
    [],
]
CASES = {"uneven": TARGETS, "no drones": [[], [], [([9, 9, 20, 19], 1)], []]}


def gradients(targets: list, rank: int, world: int) -> list[Tensor]:
    """Loss of one process's part of the batch, and gradients averaged over the processes."""
    torch.manual_seed(0)
    images = torch.randn(IMAGES, 1, 64, 96)[rank::world]
    network, adcr = nn.Conv2d(1, 6, 3, stride=4, padding=1), ADCR((6,), (4,), negatives=2).eval()
    part = targets[rank::world]
    boxes = [torch.tensor([box for box, _ in image], dtype=torch.float32).reshape(-1, 4) for image in part]
    labels = [torch.tensor([label for _, label in image], dtype=torch.int64) for image in part]
    ignore = [torch.zeros(len(label), dtype=torch.bool) for label in labels]
    torch.manual_seed(0 if rank == 0 else 99)
    loss = adcr.loss([network(images)], Batch(images, boxes, labels, ignore))
    loss.backward()
    parameters = [*network.parameters(), *adcr.parameters()]
    distributed.average_gradients(parameters)
    return [loss.detach(), *(parameter.grad for parameter in parameters)]


def test_gather_two_processes_match_one(tmp_path):
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([*command, __file__, str(tmp_path)], env=environment, check=True, timeout=200)
    for name, targets in CASES.items():
        expected = gradients(targets, 0, 1)
        assert (expected[0] > 0) == (name == "uneven")
        for rank in range(2):
            for found, value in zip(torch.load(tmp_path / f"{name} {rank}"), expected, strict=True):
                torch.testing.assert_close(found, value, rtol=1e-4, atol=1e-6)


def test_one_process_does_nothing():
    rows = torch.randn(3, 2, requires_grad=True)
    assert distributed.gather(rows) is rows
    parameter = nn.Parameter(torch.ones(2))
    distributed.average_gradients([parameter])
    assert parameter.grad is None
    assert distributed.mean(torch.ones(2)).tolist() == [1.0, 1.0]


if __name__ == "__main__":
    with distributed.process_group("cpu"):
        for name, targets in CASES.items():
            torch.save(gradients(targets, distributed.rank(), 2), f"{sys.argv[1]}/{name} {distributed.rank()}")
