"""Calibration: a float32 model to an INT8 one, measured on unlabelled rasters before it appears. No torch."""

from autoreg.calibration.calibrate import Calibrated, calibrate_model

__all__ = ["Calibrated", "calibrate_model"]
