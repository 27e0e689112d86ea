"""What a file takes in onnxruntime, next to the original: ``latency_against``."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch

from ccrewrite.export.check import run_file, session_of
from ccrewrite.export.report import Latency
from ccrewrite.ir.timing import Case, Effort, time_cases

EFFORT = Effort(0.3, (5, 31), 0.002)
"""A few tenths of a second, or five runs of each file where it takes longer."""


def latency_against(original: Path, file: Path, inputs: Mapping[str, np.ndarray]) -> Latency:
    """Of both files on the same inputs, at native sizes, in rounds of one sample each."""
    sessions = {"original": session_of(original), "file": session_of(file)}
    cases = {
        name: Case(lambda session=session: run_file(session, inputs), nullcontext, "original")
        for name, session in sessions.items()
    }
    # On one thread the runs' own time, which other work on the machine doesn't disturb.
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    found = time_cases(cases, EFFORT, clock=clock)
    before, after = found["original"], found["file"]
    return Latency(before.median_s, after.median_s, after.ratio, after.ratio_low, after.ratio_high)
