"""How long `import workbench` takes: the median over fresh processes, beside a bare interpreter.

python benchmarks/startup.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

REPEATS = 11


def seconds(code: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - started


if __name__ == "__main__":
    for code in ("pass", "import workbench", "import workbench; workbench.run", "import workbench; workbench.load"):
        print(f"{statistics.median(seconds(code) for _ in range(REPEATS)):.3f} s  {code}")
