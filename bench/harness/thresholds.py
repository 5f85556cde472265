"""What must hold for a bench to pass: every threshold, each with its reason; `laws.is_judged` says for whom."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.harness.workload import Workload


MOST_THREADS = 8


def macs_rule_time(workload: Workload) -> bool:
    """Whether a speedup can be held against MACs: arithmetic rules the time of an embedded model on a CPU.

    On a GPU kernel launches and memory do, and by how much is the device's own; of small models with many threads too.
    """
    import torch

    return workload.is_mini and workload.device_name == "cpu" and torch.get_num_threads() <= MOST_THREADS


# A shallow step runs the same kernels as a full one, on its outermost stages. 0.85 of the MACs ratio leaves room
# for the scheduler, guidance and decoding, which caching does not shorten, and for a noisy machine.
SPEEDUP_OF_MACS_RATIO = 0.85


def speedup_in_pixels(macs_ratio: float) -> float:
    """The least speedup of a plan whose MACs would give `macs_ratio`, in pixel space.

    There the outermost stages are bound by memory more than by arithmetic: a shallow step of mini-ddpm runs at 32 x 32
    and 16 x 16 pixels, where a MAC takes longer than at 4 x 4. So 0.75 of the ratio, and where that is less than one
    (at inner branches, which save little), no slower than uncached but for a tenth, the noise of a busy machine.
    """
    return max(0.75 * macs_ratio, 0.9)


# MACs of mini-ldm's U-Net on one latent: a full step, and a shallow step at branch 0 (stored values, worked out when
# the model was made; `python -m deepcache macs --model mini-ldm --json`). A plan's mean is exact arithmetic on them.
MINI_LDM_FULL_MACS = 69_158_096
MINI_LDM_SHALLOW_MACS = 8_045_376


def samples_as_asked(num_samples: int) -> float:
    """Share of guided samples that are the garment asked for.

    The model must reach 0.85 of 1,000 samples (its card has the figure); of fewer samples, four
    standard errors of that share are allowed for.
    """
    return 0.85 - 4 * (0.85 * 0.15 / num_samples) ** 0.5


# With the interval the feature grows older: fidelity must fall at every step of N = 2, 3, 5, 10, 20. Both measures
# are paired (same seeds, same start noise). Where only such strides are compared, no seed's luck turns the order round:
# neighbours among all N may change places (N = 6 and 7 do in Figure 7, whose plans differ by one full step).
PSNR_FALLS_BY_AT_LEAST_DB = 0.0
FID_DRIFT_GROWS_BY_AT_LEAST = 0.0

# Samples of one garment and two seeds are 7 dB apart; at 20 dB an image is the same to the eye, and below it a seed
# counts as tipped (deepcache/metrics/fidelity.py). At N = 2 the paper calls the loss negligible.
SAME_IMAGE_DB = 20.0

# A branch further in, a shallow step recomputes one stage more, and less of it is old. That stage is new beside old
# ones, so that a branch may be a little farther off than the one before: 2 dB at most, of the 10 dB and more (a tenth
# of the squared error) that the innermost must be nearer than the outermost.
PSNR_DIPS_BY_AT_MOST_DB = 2.0
INNERMOST_BRANCH_GAINS_DB = 10.0

# Prediction must beat reuse where features are smooth between full steps: a deep feature that is linear in the timestep
# over an interval loses its first-order error. 3 dB is a factor of two in the squared error, far below what a study on
# other models gave (8 dB and more of the median seed); at N = 10 the interval is no longer short against the feature's
# own change. Of the mean error, which a tipped seed rules, only that it does not grow is asked, within a tenth.
PREDICTION_INTERVALS = (2, 3, 5)
PREDICTION_GAINS_DB = 3.0
PREDICTION_LOSES_NO_MORE_THAN = 1.1

# Fewer steps at the same cost are what a user could do without a library, so prediction must be nearer than they at the
# intervals of these two. At N = 5 of 25 DPM-Solver++ steps it is not (Table 4).
PREDICTION_BEATS_FEWER_STEPS = (2, 3)

# At N = 2 of 50 steps a feature is a twenty-fifth of the trajectory old: what predicts it must be nearer than reuse, by
# the factor of two in the squared error that PREDICTION_GAINS_DB asks for. What is aimed at, four times that and more,
# is recorded as held or not, and not asserted.
PARETO_GAIN_AT_INTERVAL_2_DB = 3.0

# At the same plan both packages run the same convolutions, so that this one must never be slower than the older: 3 %
# is what medians of interleaved rounds move by here from one run to the next.
ENOUGH_ROUNDS = 12
AGAINST_OLDER_PACKAGE = 0.97

# In float32 other kernels and layouts round elsewhere: within a thousandth of the largest output.
DIFFERS_FROM_EAGER_BY = 1e-3

# The older package keeps the output of every module that it wraps, 20 and more; this one keeps a feature.
OLDER_KEEPS_AT_LEAST = 5

# Of real images the score with their own caption is 92, with another image's 10 (mini-clip's card). The model must draw
# three of four as asked; a wrong garment in the right colours still scores some 40.
CLIP_SCORE_OF_MINI_SD = 75.0

# The paper loses 0.07 of 30.30 points at N = 5 (Table 14). mini-clip's score is steeper: an image whose garment it
# takes for another loses some 40 points, so that one such image of 40 is a point, and caching must not cost one.
CLIP_SCORE_LOST = 1.0
CLIP_INTERVALS = (2, 3, 4, 5)

# Table 5 of the paper: FID 193 instead of 9.7, and 312 instead of 7.4, twenty times and more. Here drift is measured,
# which has no floor of its own; a factor of ten leaves no doubt.
ZEROED_DRIFTS_FARTHER = 10.0

# The paper's Figure 2 calls features alike above a cosine of 0.95; those of adjacent steps must be, or nothing could be
# reused.
ADJACENT_FEATURES_ALIKE = 0.95

# While a full step makes the feature, the old one still stands: caching holds two at most more than the uncached run.
FEATURES_HELD_AT_ONCE = 2

# Timesteps and embeddings are a thousandth of what a step holds, and differ from one kind of step to the other.
SMALL_TENSORS = 1.01

# Caching at N = 3 changes details, not what is drawn: the distance between two seeds' images must stay within a third.
DIVERSITY_CHANGES_BY = 1.33

# Of a full step's time a shallow one takes its share of the MACs, and what does not shrink with them: the outermost
# stages hold few MACs for their many pixels, and calls have a price of their own.
SHALLOW_STEP_TAKES_BEYOND_ITS_MACS = 0.15
