"""Prints how many whole epochs of danet train fit into a budget, from the steps of a short training.

    python experiments/rivals/epochs.py PACE.json MINUTES IMAGES BATCH

PACE.json is what danet train --json has written.
"""

import sys

from danet.utils.files import read_json


def main() -> None:
    pace, minutes, images, batch = read_json(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    steps = minutes * 60 * pace["steps"] / pace["seconds"]
    print(max(1, int(steps * batch / images)))


if __name__ == "__main__":
    main()
