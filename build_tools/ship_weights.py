"""Makes trained weights part of the package: python build_tools/ship_weights.py WEIGHTS EVALUATION --command "..."

WEIGHTS is a file of `danet train`, EVALUATION the folder of `danet evaluate` on images of other recordings. Writes
danet/weights/danet_s.safetensors: half precision, one convolution a block, and in its header how it was trained and
what was measured.
"""

import argparse
import sys
from pathlib import Path

import yaml

from danet.checkpoint import SHIPPED, load_weights, save_weights
from danet.utils.errors import UserError
from danet.utils.files import read_json, read_text


def figures(folder: Path) -> dict:
    """What `danet evaluate` measured at the score that was chosen on other images."""
    metrics = read_json(folder / "metrics.json")
    return {
        "images": metrics["images"],
        "objects": metrics["objects"],
        "score": metrics["thresholds"]["tuned"],
        **{
            name: {part: criterion["tuned"][part] for part in ("precision", "recall", "f1")}
            for name, criterion in metrics["criteria"].items()
        },
        "false_alarms": {row["distractor"]: row["rates"]["tuned"] for row in metrics["false_alarms"]},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("evaluation", type=Path)
    parser.add_argument("--command", required=True, help="what trains them")
    parser.add_argument("--data", required=True, help="what they were trained on, and its licence")
    parser.add_argument("--split", required=True, help="which recordings trained, tuned and measured")
    options = parser.parse_args()
    try:
        model, metadata = load_weights(options.weights)
        seed = yaml.safe_load(read_text(options.weights.with_name("config.yaml")))["seed"]
        about = {name: getattr(options, name) for name in ("command", "data", "split")}
        save_weights(
            SHIPPED, model, {**metadata, **about, "seed": seed, "figures": figures(options.evaluation)}, compact=True
        )
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{SHIPPED}: {SHIPPED.stat().st_size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
