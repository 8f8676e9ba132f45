"""Names that teachers of users import: those of before work too."""

from stages.label import base, hearing


def test_what_a_teacher_imports_is_still_there():
    assert hearing.hear is base.read_checked
    assert (base.RATE_HZ, base.HOP_SAMPLES) == (24_000, 320)
    assert issubclass(base.RejectRecording, ValueError)  # as older teachers caught it
