"""Of a segment's codes: how many are used, how evenly. T frames, K codebooks, C codes each."""

import numpy as np


def of_codes(codes_TK: np.ndarray, size: int) -> tuple[dict[str, list], np.ndarray]:
    """(statistics per level, counts (K, C)) of codes 0 … C - 1."""
    counts_KC = np.stack([np.bincount(codes_T, minlength=size) for codes_T in codes_TK.T])
    return {
        "code_entropy_bits": entropy_bits(counts_KC).tolist(),
        "codes_used": np.count_nonzero(counts_KC, axis=1).tolist(),
    }, counts_KC


def entropy_bits(counts_KC: np.ndarray) -> np.ndarray:
    """Of each row's frequencies, (K,); 0 for an empty row. Perplexity is 2 to its power."""
    share = counts_KC / np.maximum(counts_KC.sum(-1, keepdims=True), 1)
    return -(share * np.log2(np.where(share > 0, share, 1))).sum(-1) + 0.0
