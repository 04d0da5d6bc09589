"""Biologically timed simulation, training and energy budgets for spiking networks.

The public names; losses are in `dynvision_snn.losses`, data in `dynvision_snn.data`.
"""

from dynvision_snn.comparison import Comparison as Comparison
from dynvision_snn.comparison import compare as compare
from dynvision_snn.decision import Decisions as Decisions
from dynvision_snn.decision import FirstSpike as FirstSpike
from dynvision_snn.decision import MembraneMargin as MembraneMargin
from dynvision_snn.decision import SoftmaxConfidence as SoftmaxConfidence
from dynvision_snn.decision import SpikesAhead as SpikesAhead
from dynvision_snn.decision import decide as decide
from dynvision_snn.description import Description as Description
from dynvision_snn.description import describe as describe
from dynvision_snn.encoding import BernoulliRate as BernoulliRate
from dynvision_snn.encoding import ConstantCurrent as ConstantCurrent
from dynvision_snn.encoding import Latency as Latency
from dynvision_snn.encoding import PoissonRate as PoissonRate
from dynvision_snn.energy import EnergyBudget as EnergyBudget
from dynvision_snn.energy import EnergyMeter as EnergyMeter
from dynvision_snn.energy import HardwareProfile as HardwareProfile
from dynvision_snn.energy import hardware_profiles as hardware_profiles
from dynvision_snn.model import TimedModel as TimedModel
from dynvision_snn.model import wrap as wrap
from dynvision_snn.noise import GaussianNoise as GaussianNoise
from dynvision_snn.noise import PoissonNoise as PoissonNoise
from dynvision_snn.presentation import Phase as Phase
from dynvision_snn.presentation import Presentation as Presentation
from dynvision_snn.presentation_batch import PresentationBatch as PresentationBatch
from dynvision_snn.recording import Recording as Recording
from dynvision_snn.retiming import retime as retime
from dynvision_snn.simulation import Simulation as Simulation
from dynvision_snn.simulation import simulate as simulate

__version__ = "0.1.0.dev0"
