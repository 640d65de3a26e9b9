"""Autoregressive models of images, made of masked convolutions, and the distributions of levels that they predict."""

from fused_rnn.models.base import AutoregressiveImageModel
from fused_rnn.models.categorical import Categorical
from fused_rnn.models.distribution import Distribution
from fused_rnn.models.gated_pixelcnn import GatedPixelCNN
from fused_rnn.models.logistic_mixture import LogisticMixture
from fused_rnn.models.pixelcnn import PixelCNN

__all__ = ["AutoregressiveImageModel", "Categorical", "Distribution", "GatedPixelCNN", "LogisticMixture", "PixelCNN"]
