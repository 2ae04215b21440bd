"""``danet data import|split|synthesize|inspect``."""

from collections.abc import Sequence

from danet.utils.dispatch import dispatch

COMMANDS = {
    "import": ("danet.data.importers", "convert a public dataset format to a COCO json and images"),
    "split": ("danet.data.split", "split a dataset by recording"),
    "synthesize": ("danet.data.synthetic.synthesize", "generate synthetic infrared scenes"),
    "inspect": ("danet.data.inspect", "count, draw and check datasets, and find leakage between them"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command that the first argument names."""
    return dispatch("danet data", COMMANDS, argv)


if __name__ == "__main__":
    raise SystemExit(main())
