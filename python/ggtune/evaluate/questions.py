"""Samples as questions (:mod:`ggtune.train.questions`)."""

from ggtune.train.questions import SPLITS, Part, Question, Split, part_of, questions_of, without_thought

__all__ = ["SPLITS", "Part", "Question", "Split", "part_of", "questions_of", "without_thought"]
