"""What the frames of a label column mean.

T frames at 75 Hz, F bins. A column's record has, under `facts`:

    codes   codebooks, codebook_size, hop_samples (of a stored row: 320), teacher_hop_samples (of a code)
    cqt     bins, hop_samples, magnitude (linear | log), storage (float16 | uint8), and under the storage's
            name max_abs_error, relative_rms_error; for uint8 its offset and scale

Older records have the same in their recipe, or hold linear float16 frames."""

from dataclasses import dataclass

import numpy as np

from stages.signal.rates import HOP_SAMPLES

STEPS = 255  # of uint8


@dataclass(frozen=True)
class CodesDescribed:
    codebooks: int
    size: int  # codes of one codebook
    hop_samples: int  # between stored rows, at 24 kHz
    teacher_hop_samples: int  # between codes; a slower teacher's are repeated in several rows


def describe_codes(facts: dict, recipe: dict) -> CodesDescribed:
    """From a codes record's `facts`, else its `recipe`; ValueError when a field is in neither."""
    teacher = recipe.get("teacher")
    known = (teacher if isinstance(teacher, dict) else {}) | facts
    hop = known.get("hop_samples", HOP_SAMPLES)
    try:
        fields = known["codebooks"], known["codebook_size"], hop, known.get("teacher_hop_samples", hop)
    except KeyError as error:
        raise ValueError(
            f"facts.{error.args[0]} is missing from the record of a codes column: label it again"
        ) from None
    return CodesDescribed(*map(int, fields))


def encode_uint8(frames_TF: np.ndarray, offset: float, scale: float) -> np.ndarray:
    """The nearest of 256 values offset + scale·n; scale 0 is a shard of one value."""
    if not scale:
        return np.zeros(frames_TF.shape, np.uint8)
    return np.rint(np.clip((frames_TF - np.float32(offset)) / np.float32(scale), 0, STEPS)).astype(np.uint8)


def decode_cqt(stored: np.ndarray, facts: dict) -> np.ndarray:
    """Stored frames (…, F) as float32, in the magnitude (linear or natural log) that `facts` name.

    facts: of the frames' own shard, for each uint8 shard has its own scale; float16 needs none. ValueError
    for another dtype, or uint8 without its scale."""
    if stored.dtype in (np.float16, np.float32):
        return stored.astype(np.float32)
    if stored.dtype != np.uint8:
        raise ValueError(
            f"stored CQT frames are {stored.dtype}: expected float16 or uint8; label this column again"
        )
    try:
        scale, offset = facts["uint8"]["scale"], facts["uint8"]["offset"]
    except KeyError as error:
        raise ValueError(
            f"facts.uint8 lacks {error}: 8-bit CQT frames cannot be read without the record of their shard"
        ) from None
    return stored.astype(np.float32) * np.float32(scale) + np.float32(offset)
