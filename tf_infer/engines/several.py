"""Where ids that an engine reads in one go belong in the pages of a slot, and what each may see.

Pure. A graph of `optimize/litert_several.py` reads these arrays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np


def fill_mask(mask: np.ndarray, start: int, masked: float) -> None:
    """Let each id see the places in front of its own, and itself at the end.

    Args:
        mask: [K, 1, 1, places + 1], to be filled.
        start: place of the first id.
        masked: what stands where nothing is to be seen.
    """
    places = np.arange(mask.shape[-1] - 1)
    own = start + np.arange(len(mask))
    mask[:, 0, 0, :-1] = np.where(places < own[:, None], np.float32(0.0), np.float32(masked))
    mask[:, 0, 0, -1] = 0.0


def fill_places(put: Mapping[int, np.ndarray], stay: Mapping[int, np.ndarray], start: int,
                begins: Sequence[int]) -> None:
    """Say which id belongs where in each page, and which places of it stay as they are.

    Args:
        put: page -> [1, G, C, K], to be filled: 1 where an id belongs, else 0.
        stay: page -> [1, 1, C, 1], to be filled: 0 where an id belongs, else 1.
        start: place of the first id.
        begins: first place of each page.
    """
    for page, array in put.items():
        _, _, places, count = array.shape
        here = begins[page] + np.arange(places)[:, None] == start + np.arange(count)  # [C, K]
        array[...] = here
        stay[page][0, 0, :, 0] = ~here.any(1)
