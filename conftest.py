"""Where an optional package is missing, the examples in docstrings that need it are left out."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("onnx") else ["fused_rnn/onnx/*"]
