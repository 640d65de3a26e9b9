"""The check that a model of images is autoregressive: that no pixel depends on itself or on a later one."""

from fused_rnn.autoregressive.check import check_autoregressive
from fused_rnn.autoregressive.report import AutoregressiveReport, Finding

__all__ = ["AutoregressiveReport", "Finding", "check_autoregressive"]
