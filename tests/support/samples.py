"""Samples by hand."""

import numpy as np

from repsim.data.samples import Sample


def sample_of(key: str, *ids: int) -> Sample:
    return Sample(key, np.array(ids, np.int32))
