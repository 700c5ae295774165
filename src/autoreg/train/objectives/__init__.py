"""What a training maximises: the paper's two objectives, and those of the methods that it is compared with."""

from autoreg.train.objectives.objective import Gain, Objective, make_objective

__all__ = ["Gain", "Objective", "make_objective"]
