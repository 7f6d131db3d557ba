"""The least time that work can take on a machine whose ceilings were measured: the roofline (Williams et al. 2009).

Plain arithmetic on records; measures nothing. `tuning.machine_ceilings` measures the ceilings.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

# Under which a store and a study's environment hold them.
KIND = "ceilings"


@dataclass(frozen=True)
class Ceilings:
    """The most that one backend reached on this machine.

    Attributes:
        device: in words.
        threads: CPU threads inside an operator; None where the backend chose.
        rates: type -> operations a second in matrix products and convolutions, whichever was faster; a multiplication and
            an addition are two.
        absent: type -> why it has no rate.
        copy_bytes: bytes read and written in one call of a copy, growing.
        copy_rates: bytes a second at each of these sizes.
        call_seconds: of a model with one tiny layer.
        layer_seconds: that each further tiny layer takes.
        measured_at: Unix time.
        tries: how often they were measured; of each the best counts, as something else may have run meanwhile.
    """

    backend: str
    backend_version: str
    device: str
    threads: int | None
    rates: dict[str, float]
    copy_bytes: tuple[int, ...]
    copy_rates: tuple[float, ...]
    call_seconds: float
    layer_seconds: float
    measured_at: float
    absent: dict[str, str] = field(default_factory=dict)
    tries: int = 1

    def joined(self, later: Ceilings) -> Ceilings:
        """Return the best of both measurements of one machine."""
        names = {**self.rates, **later.rates}
        return replace(
            later,
            rates={name: max(self.rates.get(name, 0.0), later.rates.get(name, 0.0)) for name in names},
            absent={name: why for name, why in later.absent.items() if name not in names},
            copy_rates=tuple(max(pair) for pair in zip(self.copy_rates, later.copy_rates, strict=True)),
            call_seconds=min(self.call_seconds, later.call_seconds),
            layer_seconds=min(self.layer_seconds, later.layer_seconds),
            tries=self.tries + later.tries,
        )

    def rate(self, precision: str) -> float:
        """Return operations a second in a type; those of FP32 where the type has no arithmetic of its own here."""
        return self.rates.get(precision, self.rates["fp32"])

    def bandwidth(self, size_bytes: float) -> float:
        """Return bytes a second for work that moves this many bytes, between the measured sizes in logarithms."""
        size = np.log(max(size_bytes, 1.0))
        return float(np.exp(np.interp(size, np.log(self.copy_bytes), np.log(self.copy_rates))))

    def bound(self, flops: float, size_bytes: float, precision: str) -> tuple[float, str]:
        """Return the least seconds that a layer can take, and what bounds it: `compute` or `memory`."""
        compute = flops / self.rate(precision)
        memory = size_bytes / self.bandwidth(size_bytes) if size_bytes else 0.0
        return (compute, "compute") if compute >= memory else (memory, "memory")

    def words(self) -> str:
        """Say them in a line."""
        rates = ", ".join(f"{name.upper()} {rate / 1e9:,.0f} GFLOP/s" for name, rate in self.rates.items())
        return (
            f"{rates}; copies {self.copy_rates[-1] / 1e9:.0f} GB/s from memory, {max(self.copy_rates) / 1e9:.0f} GB/s in "
            f"caches; a call {self.call_seconds * 1e6:.1f} µs, each layer {self.layer_seconds * 1e6:.2f} µs"
        )
