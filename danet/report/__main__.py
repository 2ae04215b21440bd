"""``danet report``: writes one HTML page about a run or a benchmark."""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from danet.utils import cli
from danet.utils.errors import UserError
from danet.utils.files import read_json, write_json, write_text
from danet.utils.help_page import HelpPage
from danet.utils.progress import working

NOT_OUR_FORMAT = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What reading and drawing the content of edited or foreign files raises."""
if TYPE_CHECKING:
    from danet.report.page import Page

PAGE = HelpPage(
    examples={
        "danet report runs/first": "write runs/first/report.html about a training, an evaluation or an ablation",
        "danet report benchmark.json --out benchmark.html": "the results of benchmarks.ops or benchmarks.detector",
    }
)


@dataclass
class ReportOptions:
    """Options of ``danet report``."""

    run: str
    """Folder of danet train, evaluate or ablate, or JSON file of benchmarks.ops or benchmarks.detector; also given as
    the first argument."""

    out: str | None = None
    """HTML file to write; by default report.html in the folder, or next to the JSON file with the same name."""

    frames: int = 12
    """Number of images shown with boxes if the data of the run are still there; 0 shows none."""

    json: str | None = None
    """Also write the page's path, title and size in bytes to this file."""

    quiet: bool = False
    """Print only errors."""

    def __post_init__(self) -> None:
        if self.frames < 0:
            raise UserError(f"--frames must be 0 or more, got {self.frames}")


def report(options: ReportOptions) -> None:
    """Writes one HTML page about a run or a benchmark.

    The page shows configuration, curves, tables, pictures and the command that reproduces the run. It is a single file
    that needs no server and no network.
    """
    path = Path(options.run)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    out = Path(options.out) if options.out else path / "report.html" if path.is_dir() else path.with_suffix(".html")
    cli.check_outputs([out, options.json], _read_files(path))
    try:
        with working("reading the run", quiet=options.quiet):
            page = _folder_page(path, options.frames) if path.is_dir() else _file_page(path)
    except UserError:  # a ValueError, too
        raise
    except NOT_OUR_FORMAT as error:
        raise UserError(f"{path}: not in the format that danet writes ({type(error).__name__}: {error})") from error
    write_text(out, page.html(f"Written by danet report on {datetime.date.today().isoformat()}."))
    if options.json is not None:
        write_json(options.json, {"page": str(out), "title": page.title, "bytes": out.stat().st_size})
    if not options.quiet:
        print(out)


def _folder_page(folder: Path, frames: int) -> "Page":
    from danet.report.ablation_page import SUMMARY, ablation_report
    from danet.report.evaluation_page import METRICS, evaluation_report
    from danet.report.training_page import training_report
    from danet.training.run_folder import STEPS

    if (folder / SUMMARY).is_file():
        return ablation_report(folder)
    if (folder / STEPS).is_file():
        return training_report(folder, frames)
    if (folder / METRICS).is_file():
        return evaluation_report(folder, frames)
    written = f"{STEPS} (danet train), {METRICS} (danet evaluate), {SUMMARY} (danet ablate)"
    raise UserError(f"{folder}: not a run; has none of the files {written}")


def _read_files(path: Path) -> list[Path]:
    """The files of a run that its page is made of."""
    from danet.training.run_folder import RUN_FILES

    names = (*RUN_FILES, "metrics.json", "predictions.json", "curves.csv", "ablation.json")
    return [path / name for name in names] if path.is_dir() else [path]


def _file_page(path: Path) -> "Page":
    from danet.report.benchmark_page import benchmark_report

    content = read_json(path)
    if not isinstance(content, dict) or not {"machine", "ceilings", "cases"} <= content.keys() or not content["cases"]:
        raise UserError(f"{path}: not the results of benchmarks.ops or benchmarks.detector")
    return benchmark_report(path, content)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return cli.run(
        report, ReportOptions, prog="danet report", positionals=["run"], inputs={"run": ()}, page=PAGE, argv=argv
    )


if __name__ == "__main__":
    raise SystemExit(main())
