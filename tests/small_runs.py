"""The command in a process of its own, and a run of seconds, for the tests of faults and of processes."""

from __future__ import annotations

import os
import sys

COMMAND = [sys.executable, "-m", "arcsm.cli"]
TINY = """
name: tiny
data: {kind: digits}
model:
  context: {kind: MADE, hidden_features: [16], context_features: 4}
  head: {kind: ScoreHead, hidden_features: [8]}
  noise: {sigma_max: 1.0, sigma_min: 0.1, levels: 4}
train: {steps: %d, batch_size: 15, validate_every: 10, checkpoint_seconds: %g, standardise: none, device: cpu}
"""

#: A run of two steps on data of one's own.
ON_DATA = """
name: small
data: %s
model:
  context: {kind: MADE, hidden_features: [8], context_features: 2}
  head: {kind: ScoreHead, hidden_features: [4]}
  noise: {sigma_max: 1.0, sigma_min: 0.1, levels: 3}
train: {steps: 2, batch_size: 4, device: cpu}
"""


def environment(**more: str) -> dict[str, str]:
    """The environment on one thread."""
    return {**os.environ, "OMP_NUM_THREADS": "1", **more}
