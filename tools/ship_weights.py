"""Adds trained weights to the package: python tools/ship_weights.py WEIGHTS EVALUATION --command "..."

WEIGHTS is a weights file of `danet train`; EVALUATION is the output folder of `danet evaluate` on images of other
recordings. Writes danet/weights/NAME.safetensors, where NAME is --name, or that of the network: float16, one
fused convolution per block, and in the file header how the weights were trained and their metrics.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import yaml

from danet.checkpoint import load_weights, save_weights
from danet.data.image_domain import ImageDomain
from danet.inference.batch_detector import SUPPORTED_CLASSES
from danet.utils.errors import UserError
from danet.utils.files import read_json, read_text
from danet.utils.shipped_weights import SHIPPED_FOLDER


def tuned_metrics(folder: Path) -> dict:
    """The metrics of `danet evaluate` at the score threshold that was tuned on other images."""
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
    parser.add_argument("--name", help="name of the weights; by default that of the network")
    parser.add_argument("--command", required=True, help="the command that trained the weights")
    parser.add_argument("--data", required=True, help="the training data and its licence")
    parser.add_argument("--split", required=True, help="which recordings were used for training, tuning and evaluation")
    parser.add_argument("--supported", nargs="+", required=True, help="classes that the model card supports")
    parser.add_argument(
        "--pixel_scale", nargs=2, type=float, help="magnifications at which it detects as well, as measured"
    )
    options = parser.parse_args()
    try:
        model, metadata = load_weights(options.weights)
        seed = yaml.safe_load(read_text(options.weights.with_name("config.yaml")))["seed"]
        about = {name: getattr(options, name) for name in ("command", "data", "split")}
        domain = ImageDomain.from_metadata(metadata)
        if domain is None:
            raise UserError(f"{options.weights}: its metadata does not state the training images; train it again")
        if options.pixel_scale is not None:
            domain = replace(domain, pixel_scale=tuple(options.pixel_scale))
        about |= {**domain.to_metadata(), SUPPORTED_CLASSES: options.supported}
        path = SHIPPED_FOLDER / f"{options.name or model.config.name}.safetensors"
        save_weights(
            path,
            model,
            {**metadata, **about, "seed": seed, "figures": tuned_metrics(options.evaluation)},
            compact=True,
        )
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
