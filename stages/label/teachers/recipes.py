"""Ranges of the fields of mel teachers' recipes, and which values fit each other."""

from typing import Annotated, Any

from pydantic import Field

from stages.config import Count, Natural, Whole, check, remedy
from stages.signal.mel import mel_filters
from stages.signal.rates import HOP_SAMPLES, RATE_HZ

FRAMES_PER_CODE = 4  # the fewest to fit on: with fewer, codes would be copies of single frames

Codebooks = Annotated[Count, Field(le=64)]
CodebookSize = Annotated[Whole, Field(ge=2, le=65536)]  # codes are uint16
Dim = Annotated[Whole, Field(ge=2)]
Mels = Annotated[Whole, Field(ge=2)]
Window = Annotated[Whole, Field(ge=HOP_SAMPLES, le=65536, multiple_of=2), remedy("best a power of two")]
Stack = Annotated[Count, Field(le=8)]
Steps = Annotated[Count, Field(le=10_000_000)]
Batch = Annotated[Count, Field(le=1_000_000)]
Seed = Annotated[Natural, Field(le=2**32 - 1)]


def check_bands(recipe: Any, n_fft: int) -> None:
    check(recipe.mels <= n_fft // 2, recipe, "mels", f"expected 2 to {n_fft // 2}, half of n_fft {n_fft}")
    mel_filters(RATE_HZ, n_fft, recipe.mels)  # refuses bands without any frequency
    if hasattr(recipe, "dim"):
        width = recipe.mels * recipe.stack
        check(recipe.dim <= width, recipe, "dim", f"expected 2 to {width}, mels times stack")


def check_fitted(recipe: Any) -> None:
    check_bands(recipe, recipe.n_fft)
    size = recipe.codebook_size
    needed = FRAMES_PER_CODE * size
    least = needed * HOP_SAMPLES / RATE_HZ / 60
    few = f"too little for codebook_size {size}; give at least {least:.2f} or lower codebook_size"
    check(recipe.fit_minutes * 60 * RATE_HZ / HOP_SAMPLES >= needed, recipe, "fit_minutes", few)
