"""Biologically timed simulation, training and energy budgets for spiking networks."""

from dynvision_snn.model import TimedModel as TimedModel
from dynvision_snn.model import wrap as wrap
from dynvision_snn.presentation import Presentation as Presentation
from dynvision_snn.recording import Recording as Recording

__version__ = "0.1.0.dev0"
