"""A teacher that does to some recordings what teachers of users do."""

import errno
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages.label.base import RejectRecording


@dataclass(frozen=True)
class Odd:
    """A recording of more than `over_s` meets `what`, once if `once` names a file."""

    name = "odd"
    version = 1
    codebooks = 1
    codebook_size = 16
    what: str = ""  # defect | reject | busy
    over_s: float = 0.0
    once: str = ""

    def open(self, weights, device, threads):
        def label(wave):
            if wave.samples > self.over_s * 24_000 and not (self.once and os.path.exists(self.once)):
                if self.once:
                    Path(self.once).touch()
                if self.what == "defect":
                    return [][1]
                if self.what == "reject":
                    raise RejectRecording("not to my taste")
                if self.what == "busy":
                    raise OSError(errno.EIO, "the disk is busy")
            yield np.zeros((wave.samples // 320, 1), np.uint16)

        return label
