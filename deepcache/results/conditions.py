"""Which settings a comparison must have in common, and what a person may allow to differ."""

from __future__ import annotations

METHOD = ("model", "scheduler", "branch", "order")  # they tell apart rows of one name
RUN = ("first_seed", "num_samples", "num_steps", "batch_size")  # without them no seed has its counterpart
CONDITIONS = (  # a number depends on them; the machine is not among them, since pairs and ratios outlast it
    "weights", "device", "dtype", "num_threads", "extractor", "clip", "perceptual", "guidance_scale",
    "uncached_steps", "prompts",
)  # fmt: skip
EXPERIMENTS, SPEED = "experiments", "speed"
ALLOWANCES = (EXPERIMENTS, SPEED, *CONDITIONS)
HELP = (
    "gate the rest although WHAT is missing or differs: the `experiments` of the baseline that were not run, `speed` "
    f"that was not measured, or a setting ({', '.join(CONDITIONS)}); may be given several times"
)
