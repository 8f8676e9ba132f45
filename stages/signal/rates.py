"""The two numbers on which audio, labels and model agree."""

RATE_HZ = 24_000  # samples a second, mono (M config/pretrain)
HOP_SAMPLES = 320  # of one row of labels and of one model frame: a recording has floor(samples / 320)
FRAMES_PER_S = RATE_HZ // HOP_SAMPLES  # 75
