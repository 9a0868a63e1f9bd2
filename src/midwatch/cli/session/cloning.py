"""The progress of clones: bars on a terminal, a line per repository elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from midwatch.cli.session.telling import aside
from midwatch.text import one_line
from midwatch.workspace.git import OnProgress, Progress

_SHARE = {
    "asking": 0,
    "counting": 5,
    "receiving": 10,
    "resolving": 80,
    "checkout": 90,
    "done": 100,
}
_SPAN = {"counting": 5, "receiving": 70, "resolving": 10, "checkout": 10}


@contextmanager
def shown_progress(quiet: bool) -> Iterator[OnProgress]:
    """What to hand to `setup_workspace`; it writes to standard error, or nowhere if `quiet`."""
    if quiet:
        yield lambda progress: None
    elif sys.stderr.isatty():
        with _bars() as show:
            yield show
    else:
        yield _lines


def _lines(progress: Progress) -> None:
    if progress.phase == "done":
        aside(f"cloned {progress.repository}")


@contextmanager
def _bars() -> Iterator[OnProgress]:
    from rich.console import Console
    from rich.progress import BarColumn
    from rich.progress import Progress as Bars
    from rich.progress import TextColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[detail]}", markup=False),
    )
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, int] = {}

        def show(progress: Progress) -> None:
            name = one_line(progress.repository, 60)
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=100, detail="")
            done = _SHARE[progress.phase]
            done += _SPAN.get(progress.phase, 0) * progress.percent // 100
            detail = one_line(f"{progress.phase} {progress.detail}", 40)
            bars.update(tasks[name], completed=done, detail=detail)  # type: ignore[arg-type]

        yield show
