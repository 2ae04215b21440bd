"""Which blocks of a launch the model executes."""

import numpy as np

from benchmarks.gpu_model.machine import Launch

SIMULATED_BLOCKS = 8


def some_blocks(launch: Launch) -> np.ndarray:
    """A few blocks from the middle of a grid, as whole clusters, which stand for all of them."""
    clusters = launch.blocks // launch.cluster
    count = min(-(-SIMULATED_BLOCKS // launch.cluster), clusters)
    chosen = np.unique(np.linspace(clusters // 3, clusters * 2 // 3, count).astype(int))
    return (chosen[:, None] * launch.cluster + np.arange(launch.cluster)).reshape(-1)
