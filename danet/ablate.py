"""``danet ablate``: trains variants of one recipe with several seeds, evaluates and compares them."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from danet.evaluation.ablate_options import AblateOptions
from danet.utils import cli
from danet.utils.files import read_text, write_text
from danet.utils.help_page import HelpPage
from danet.utils.typed_options import paths_as_texts

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""

INPUTS = {"val": (), "tune": (), "teacher_small": (), "teacher_medium": (), "teacher_large": ()}

PAGE = HelpPage(
    {
        "data": ["val", "tune", "train", "folds", "stride", "class_map"],
        "variants": ["rows", "more", "seeds"],
        "metrics": ["target", "criterion", "recall"],
        "results": ["out", "quiet", "json"],
        "more": ["config", "print_config", "help", "help_all", "debug"],
    },
    {
        "danet ablate val.json --rows baseline safem+acfa -- --data train.json --epochs 10": (
            "compare two variants over three seeds; the options after -- go to danet train"
        ),
        "danet ablate val.json --folds 3 -- --data train.json": "cross-validation over recordings",
    },
)


def ablate(options: AblateOptions) -> int:
    """Trains and evaluates variants of one recipe with equal budgets, and compares them.

    Finished runs are not repeated and interrupted runs are resumed: the same command continues an ablation at any
    point. After every seed ablation.md and ablation.json hold the results so far.
    """
    options = paths_as_texts(options)
    cli.check_out(options)
    from rich.console import Console

    from danet.training.ablation_study import AblationStudy

    study = AblationStudy(options)
    write_text(Path(options.out) / "config.yaml", cli.dump(options))
    console = Console(quiet=options.quiet, highlight=False)
    all_runs = study.runs()
    for number, runs in enumerate(all_runs, 1):
        results = []
        for run in runs:
            console.print(f"{number}/{len(all_runs)}  {run.name}, seed {run.options.seed}, {run.folder}", style="bold")
            if not run.train():
                print("danet ablate: interrupted; run the same command again to continue", file=sys.stderr)
                return INTERRUPTED
            for message in run.evaluate():
                print(f"danet ablate: warning: {message}", file=sys.stderr)
            results.append(run.result())
            console.print(results[-1].line())
        study.add(results)
    if not options.quiet:
        print(read_text(Path(options.out) / "ablation.md"), end="")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code. Arguments after a separate ``--`` belong to ``danet train``."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if "--" in argv:
        at = argv.index("--")
        argv = [*argv[:at], f"--train={json.dumps(argv[at + 1 :])}"]
    return cli.run(ablate, AblateOptions, prog="danet ablate", positionals=["val"], inputs=INPUTS, page=PAGE, argv=argv)


if __name__ == "__main__":
    raise SystemExit(main())
