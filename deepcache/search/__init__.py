"""Which steps to run in full: measured once, then decided exactly."""

from deepcache.search.calibration import Calibration, calibrate

__all__ = ["Calibration", "calibrate"]
