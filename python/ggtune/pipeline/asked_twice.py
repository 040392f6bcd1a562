"""The questions of a run: asked of the base before the training, and of what came out of it."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ggtune._native import core
from ggtune.errors import GgtuneError
from ggtune.evaluate import before_after
from ggtune.evaluate.before_after import BeforeAfter
from ggtune.run.progress import Reporter
from ggtune.train.fixed_questions import number_or_file
from ggtune.train.session import Session

if TYPE_CHECKING:
    from ggtune.data.templates import Template


@dataclass(frozen=True)
class AskedTwice:
    """Questions with the answers of the base and of the result."""

    questions: tuple[BeforeAfter, ...]
    before_s: float  # 0 where the base's answers were there from an earlier session
    after_s: float

    def lines(self, *, width: int = 100) -> list[str]:
        """Say them for a terminal; nothing where none was asked twice."""
        done = [one for one in self.questions if one.before is not None and one.after is not None]
        if not done:
            return []
        if all(one.row is None for one in done):
            of = " of yours"
        else:
            held_out = all(one.held_out for one in done if one.row is not None)
            of = " held out of the training" if held_out else " that it was trained on"
        took = f"{self.before_s:.0f} s before, " if self.before_s else ""
        n = f"{len(done)} question{'s' * (len(done) != 1)}"
        head = f"Before and after, {n}{of} ({took}{self.after_s:.0f} s after; {before_after.FILE}):"
        return [head, *before_after.lines(done, width=width)]


class Asking:
    """Asks the same questions twice. Where a model can't be asked, the run goes on without: the reporter is told."""

    def __init__(self, folder: Path, questions: str, reporter: Reporter, *, keeps: bool) -> None:
        """``questions`` as :func:`~ggtune.train.fixed_questions.number_or_file` takes them.

        ``keeps``: those that the folder has are asked on, with the answers that are there. Raises
        :class:`GgtuneError` for a file of questions that is not there.
        """
        self._wanted = number_or_file(questions, before_after.OPTION)
        self._folder, self._text, self._reporter = folder, questions, reporter
        kept = before_after.read(folder) if keeps and self._wanted else []
        self._questions: Sequence[BeforeAfter] = kept if all(q.before is not None for q in kept) else []
        self._template: Template | None = None
        self._before_s = 0.0

    def before(self, session: Session) -> Mapping[Path, str]:
        """Choose the questions and ask the base; gives the text of their file.

        Raises :class:`GgtuneError` for a file of questions that can't be used.
        """
        built = session.built
        self._template = built.samples.data.template
        if self._wanted and not self._questions:
            chosen = before_after.chosen_questions(self._text, built.config, built.samples, built.model)
            started = time.monotonic()
            try:
                self._questions = before_after.asked(chosen, built.model, self._template, threads=built.config.threads)
            except GgtuneError as error:
                self._reporter.note(f"The base can't be asked before the training: {error}")
                return {}
            self._before_s = time.monotonic() - started
            if chosen:
                self._reporter.note(
                    f"Asked the base {len(chosen)} questions before the training, in {self._before_s:.0f} s; the "
                    "result will be asked the same (--questions 0: neither)."
                )
        if not self._questions:
            return {}
        return {self._folder / before_after.FILE: before_after.to_text(self._questions)}

    def after(self, model: Path, adapters: Sequence[tuple[str, float]], *, threads: int = 0) -> AskedTwice | None:
        """Ask the result, and write both answers down; None where there is nothing to ask."""
        if not self._questions:
            return None
        started = time.monotonic()
        try:
            found = before_after.asked(
                self._questions,
                core.Model(str(model)),
                self._template,
                adapters=adapters,
                threads=threads,
                after=True,
            )
            before_after.write(self._folder, found)
        except GgtuneError as error:  # the model is made and packaged: nothing of that is lost
            self._reporter.note(f"The result can't be asked after the training: {error}")
            return None
        return AskedTwice(tuple(found), self._before_s, time.monotonic() - started)
