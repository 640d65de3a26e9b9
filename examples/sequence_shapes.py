"""The four shapes of sequence work, one small model each: which outputs are used, and what a batch looks like.

    python -m examples.sequence_shapes
    python -m examples.sequence_shapes --shapes tagging --epochs 10

    one to many    `spell`     a picture of a digit -> its name, letter by letter; the picture is the first state
    many to one    `read`      the rows of the picture -> the digit; only the last output is used
    many to many   `reverse`   a word -> the word from its end; the last state of one layer starts the next
    synchronised   `tag`       each character of an identifier -> whether a word begins there; every output is used

Pictures are scikit-learn's digits, words and identifiers those of Python's own documentation.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from pydoc_data.topics import topics

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from examples.common import COLOURS, Numbers, Task, base_parser, format_numbers, make_figure, save_figure, train
from examples.layers import CHOICES, Layers
