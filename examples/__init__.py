"""Small complete programs, each short enough to be read at once; `python -m examples` runs them all."""

EXAMPLES = (
    "language_model",
    "streaming",
    "long_dependencies",
    "classifier",
    "seq2seq",
    "sequence_shapes",
    "time_series",
    "pixelcnn",
    "codec",
    "recurrent_ppo",
)
