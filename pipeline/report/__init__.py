"""What is in an OUT or a training run, for eyes: numbers, a terminal view, a page. Nothing is computed from
audio here, but the pictures of the few dozen segments that can be listened to."""
