"""The command ``lightning-kd report``: one page of a recorded run."""

from pathlib import Path

from lightning_kd.commands.parsing.parser import call_with
from lightning_kd.report.html import write_page
from lightning_kd.report.page import check_extra


def report(words: list[str]) -> None:
    """Write the page of a recorded run.

    Args:
        words: Arguments as on the command line, after ``report``.
    """
    call_with(words, write_report, "report")


def write_report(run: str, output: str = "report.html", exported: list[str] | None = None) -> None:
    """Write one self-contained HTML page of a recorded run.

    A fit records itself with the callback lightning_kd.report.RecordRun: --trainer.callbacks+=
    lightning_kd.report.RecordRun --trainer.callbacks.output=DIR. The page needs pip install "lightning_kd[report]".

    Args:
        run: Folder of the record.
        output: File to write; its ending is .html.
        exported: Files that the student was exported to, to be named on the page: [student.onnx,student.safetensors].

    Raises:
        FileNotFoundError: If the folder holds no record, or there is no such exported file.
        ValueError: If the output is no .html file, or what is in the folder is no record.
    """
    if Path(output).suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"--output {output}: the page is HTML, so its name ends in .html.")
    check_extra()
    write_page(run, output, exported or ())
    print(f"The report is in {output!r}.")
