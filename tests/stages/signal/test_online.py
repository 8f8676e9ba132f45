"""Frames of a crop with its context are the whole recording's frames, wherever the crop lies."""

import numpy as np
import pytest
import torch

from stages.signal.cqt import ConstantQ, CqtSpec, log_magnitude
from stages.signal.online import OnlineCqt
from tests.stages.signal.test_cqt import assert_close, music

pytestmark = pytest.mark.usefixtures("one_thread")

CROP, CONTEXT = 48_000, 25_230


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cqt")
    ConstantQ(CqtSpec(), folder)
    return folder


@pytest.fixture(scope="module")
def recording() -> np.ndarray:
    return music(4, 10, 9)


def contexts(recording: np.ndarray, starts: list[int]) -> torch.Tensor:
    padded = np.pad(recording, (CONTEXT, CONTEXT + CROP))
    return torch.from_numpy(np.stack([padded[s : s + CROP + 2 * CONTEXT] for s in starts]))


def test_crops_hold_the_recordings_own_frames(tables, recording):
    """At its beginning, in the middle, at its end and across it."""
    online = OnlineCqt(cache_dir=tables)
    assert online.context_samples == CONTEXT
    whole = (
        ConstantQ(CqtSpec(), tables)
        .frames(torch.from_numpy(recording)[None], 0, len(recording) // 320)[0]
        .double()
        .numpy()
    )
    starts = [0, 320 * 211, len(recording) // 320 * 320 - CROP, len(recording) // 320 * 320 - 320 * 20]
    frames_BLF = online(contexts(recording, starts))
    assert frames_BLF.shape == (4, CROP // 320, 336) and frames_BLF.dtype == torch.float32
    for start, ours in zip(starts, frames_BLF, strict=True):
        wanted = whole[start // 320 : start // 320 + CROP // 320]
        assert_close(ours[: len(wanted)], wanted, scale_FK=whole)


def test_without_its_context_a_crops_low_bins_would_be_wrong(tables, recording):
    context_BN = contexts(recording, [320 * 211])
    bare_BN = context_BN.clone()
    bare_BN[:, :CONTEXT] = bare_BN[:, -CONTEXT:] = 0
    online = OnlineCqt(cache_dir=tables)
    right, wrong = online(context_BN)[0], online(bare_BN)[0]
    assert (right - wrong)[0, :48].abs().max() > 0.05 * right[:, :48].max()


def test_autocast_changes_nothing_and_log_is_the_logarithm(tables, recording):
    context_BN = contexts(recording, [0, 320 * 100])
    plain = OnlineCqt(cache_dir=tables)(context_BN)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(OnlineCqt(cache_dir=tables)(context_BN), plain)
        logs = OnlineCqt(magnitude="log", cache_dir=tables)(context_BN)
    assert logs.dtype == torch.float32 and torch.equal(logs, log_magnitude(plain))


def test_what_cannot_be_is_refused(tables):
    online = OnlineCqt(cache_dir=tables)
    with pytest.raises(
        ValueError, match="context_BN has 50459 samples: expected a crop and 25230 more on either side"
    ):
        online(torch.zeros(1, 2 * CONTEXT - 1))
    with pytest.raises(ValueError, match="context_BN is on meta, the tables on cpu"):
        online(torch.zeros(1, 60_000, device="meta"))
    with pytest.raises(ValueError, match="dtype torch.float16"):
        online(torch.zeros(1, 60_000, dtype=torch.float16))
    with pytest.raises(ValueError, match="magnitude is 'db'"):
        OnlineCqt(magnitude="db", cache_dir=tables)
