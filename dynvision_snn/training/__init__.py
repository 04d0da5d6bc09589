"""Training a wrapped model: a plain loop."""

from dynvision_snn.training.loop import Epoch as Epoch
from dynvision_snn.training.loop import fit as fit
