"""A sweep: trainings that differ in a few settings, the bad ones left early (:mod:`ggtune.train.halving`)."""

from ggtune.sweep.preparing import Prepared, prepare
from ggtune.sweep.running import SweepOptions, SweepResult, check_folder, check_same, moved, sweep

__all__ = ["Prepared", "SweepOptions", "SweepResult", "check_folder", "check_same", "moved", "prepare", "sweep"]
