"""The outcome of `alphadrive eval`, and the folder it is written to.

OUT/eval.json                        every figure; written last, so a folder that has it is whole
OUT/eval.txt                         the tables of the screen
OUT/predictions.jsonl                every answer with its verdict, and its samples
OUT/predictions-image-blank.jsonl    the answers under an ablation, one file for each
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from alphadrive.atomic import write_json, write_text
from alphadrive.errors import RunFolderError
from alphadrive.eval_figures import Compared, EvalFigures
from alphadrive.evaluation import Answered
from alphadrive.predictions import prediction_line


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalReport:
    """Figures and where they come from.

    `who` answered (a model, or a file of predictions) on `data`; `decoding` says how the judged answer was
    drawn. `seconds` is the time of the judged answers, None where they came from a file. `ablations` are
    held against the answers to the real input.
    """

    who: str
    data: Path
    decoding: str
    figures: EvalFigures
    seconds: float | None = None
    ablations: dict[str, Compared] = field(default_factory=dict)

    def as_dict(self) -> dict[str, object]:
        """The content of `eval.json`."""
        return {
            **self.figures.as_dict(),
            "ablations": {name: ablated.as_dict() for name, ablated in self.ablations.items()},
            "source": {
                "who": self.who,
                "data": str(self.data),
                "decoding": self.decoding,
                "seconds": self.seconds,
            },
        }


def prepare_out(folder: Path) -> None:
    """Make the folder and prove that files can be written there. Raises RunFolderError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RunFolderError(
            f"--out {folder}: cannot be written to ({error.strerror}); choose a folder of your own"
        ) from error


def write_eval(
    folder: Path,
    report: EvalReport,
    tables: str,
    answers: Sequence[Answered],
    ablated: Mapping[str, Sequence[Answered]],
    source: Path | None = None,
) -> None:
    """Write a report and the answers it is about, in place of what an earlier evaluation left there.

    `eval.json` goes first and comes last: a folder that has it holds the answers it is about. The file
    `source` that the answers were read from is the user's and stays as it is.
    """
    own = None if source is None else source.resolve()
    (folder / "eval.json").unlink(missing_ok=True)
    for stale in folder.glob("predictions*.jsonl"):
        if stale.resolve() != own:
            stale.unlink()
    files = {"": answers, **{f"-{name.replace('=', '-')}": rows for name, rows in ablated.items()}}
    for suffix, rows in files.items():
        path = folder / f"predictions{suffix}.jsonl"
        if path.resolve() != own:
            write_text(path, "".join(f"{prediction_line(answered)}\n" for answered in rows))
    write_text(folder / "eval.txt", tables)
    write_json(folder / "eval.json", report.as_dict())
