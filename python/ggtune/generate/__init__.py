"""Answers of a model: one as it comes, or many side by side."""

from ggtune.generate.answers import Answer, answers
from ggtune.generate.pieces import answer_pieces

__all__ = ["Answer", "answer_pieces", "answers"]
