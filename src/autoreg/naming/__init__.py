"""Naming: which class each cluster of a model stands for, written into the model. No torch."""

from autoreg.naming.legend import read_legend
from autoreg.naming.match import Matched, match_to_model, match_to_truth
from autoreg.naming.write import write_classes

__all__ = ["Matched", "match_to_model", "match_to_truth", "read_legend", "write_classes"]
