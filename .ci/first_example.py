"""Check what tox has built and installed: its metadata, the README's first example, a first look at an embedded model.

The working folder is that of the outputs; the folder of the sources must not be on the path.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import deepcache
from deepcache.__main__ import main

ROOT = Path(__file__).parents[1]


def run() -> int:
    if ROOT / "deepcache" in Path(deepcache.__file__).parents:
        raise SystemExit(f"expected an installed package, got {deepcache.__file__}; run from another folder")
    packages = os.environ["TOX_PACKAGE"].split(os.pathsep)  # the wheel or the sdist
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *packages], check=True)
    (example, *_) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    exec(example, {})
    return main(["try", "mini-ddpm", "--num-steps", "10", "--num-images", "2"])


if __name__ == "__main__":
    sys.exit(run())
