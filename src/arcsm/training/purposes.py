"""The purposes of random numbers in the training of a density."""

from enum import IntEnum


class Purpose(IntEnum):
    """A stream of random numbers; see :func:`arcsm._runtime.random.fold_in`.

    The numbers are part of what a seed means: a new purpose needs a new one that is not a multiple of four, because the
    parts of a batch have the streams ``DROPOUT``, ``DROPOUT + 4``, ``DROPOUT + 8``, ...
    """

    ORDER = 1
    NOISE = 2
    VALIDATION = 3
    DROPOUT = 4
    BATCHES = 5
    MOMENTS = 6
