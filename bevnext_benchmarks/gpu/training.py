# SPDX-License-Identifier: Apache-2.0
"""Training steps: samples per second and memory, beside the published form."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Literal
from unittest.mock import patch

from bevnext_benchmarks import training as benchmark
from bevnext_benchmarks.gpu.kernels import baseline_pool
from bevnext_benchmarks.gpu.part import Part
from bevnext_core.network import view_transform

FASTER = 2.0
"""How many times as fast as the published form the best one shall be."""


def training(part: Part) -> None:
    """Synthetic batches through optimiser steps; published: nine encodings a sample, BEVPoolv2's pooling, fp32."""
    batch, seconds = (8, 3.0) if part.full else (4, 0.0)
    shared = benchmark.cases(part.config(2), batch)[-1]
    cases: list[tuple[Literal[1, 2], str, str]] = [(2, "published", "fp32, BEVPoolv2"), (2, shared, "bf16")]
    cases += [(2, shared, "fp32"), (2, "published", "fp32"), (1, "published", "bf16"), (1, "published", "fp32")]
    part.table(f"{batch} samples a step", "form", "samples/s", "IQR", "peak MiB", "times the published form")
    speeds: list[float] = []
    for stage, name, form in cases:
        config = part.config(stage)
        pool = patch.object(view_transform, "bev_pool", baseline_pool(part.device)) if "BEV" in form else nullcontext()
        with pool:
            found, peak = benchmark.measure(*benchmark.make(name, config, batch), part.device, form == "bf16", seconds)
        speed = batch / found.median
        speeds += [speed] if stage == 2 else []
        ratio = f"{speed / speeds[0]:.2f}" if stage == 2 else ""
        spread = f"{found.iqr / found.median:.1%}"
        part.row(f"stage {stage}, {name}", form, f"{speed:.2f}", spread, f"{peak / 2**20:.0f}", ratio)
    best = max(speeds) / speeds[0]
    if part.full:
        reached = "reached" if best >= FASTER else "not reached"
        part.note(f"target {FASTER:g} times the published form {reached}: {best:.2f}")
