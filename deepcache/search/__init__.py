"""Which steps to run in full: measured once, then decided."""

from typing import TYPE_CHECKING

from deepcache.lazy import lazy

if TYPE_CHECKING:
    from deepcache.search.calibration import Calibration, calibrate

__all__ = ["Calibration", "calibrate"]

__getattr__, __dir__ = lazy(__name__, {"calibration": ("Calibration", "calibrate")})
