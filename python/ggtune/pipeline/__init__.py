"""From training data to a model that answers: train, merge, package, ask. The command line is a thin layer over this.

Each function takes its options as a dataclass, returns what came of it, prints nothing, and tells a
:class:`~ggtune.run.progress.Reporter` how it goes on. All that a user can mend is a
:class:`~ggtune.errors.GgtuneError`.
"""

from ggtune.evaluate.evaluation import Evaluation, read_evaluation
from ggtune.pipeline.asked_twice import AskedTwice
from ggtune.pipeline.asking import AskOptions, LoadedModel, ask, load
from ggtune.pipeline.chain import Packaging, RunResult, find_run, questions_of_run, resume, run
from ggtune.pipeline.comparing import ComparedSubjects, compare_subjects
from ggtune.pipeline.evaluating import EvaluateOptions, evaluate
from ggtune.pipeline.merging import MergedRun, MergeOptions, merge, merge_run
from ggtune.pipeline.packaging import PackageOptions, package
from ggtune.pipeline.reporting import ReportOptions, report
from ggtune.pipeline.side_effects import (
    ChoiceOptions,
    GeneralOptions,
    MeasuredChoices,
    MeasuredGeneral,
    measure_choices,
    measure_on_general,
)
from ggtune.pipeline.training import TrainOptions, claim_folder, find_checkpoint, settings, train
from ggtune.run.progress import Progress, Reporter

__all__ = [
    "AskOptions",
    "AskedTwice",
    "ChoiceOptions",
    "ComparedSubjects",
    "EvaluateOptions",
    "Evaluation",
    "GeneralOptions",
    "LoadedModel",
    "MeasuredChoices",
    "MeasuredGeneral",
    "MergeOptions",
    "MergedRun",
    "PackageOptions",
    "Packaging",
    "Progress",
    "ReportOptions",
    "Reporter",
    "RunResult",
    "TrainOptions",
    "ask",
    "claim_folder",
    "compare_subjects",
    "evaluate",
    "find_checkpoint",
    "find_run",
    "load",
    "measure_choices",
    "measure_on_general",
    "merge",
    "merge_run",
    "package",
    "questions_of_run",
    "read_evaluation",
    "report",
    "resume",
    "run",
    "settings",
    "train",
]
