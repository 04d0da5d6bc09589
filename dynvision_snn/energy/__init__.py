"""Counts and joules: exact fan-out, cited hardware profiles, and the budget that joins them."""

from dynvision_snn.energy.breakeven import BreakEven as BreakEven
from dynvision_snn.energy.breakeven import break_even as break_even
from dynvision_snn.energy.breakeven import quantised_counterpart as quantised_counterpart
from dynvision_snn.energy.budget import EnergyBudget as EnergyBudget
from dynvision_snn.energy.hardware import HardwareProfile as HardwareProfile
from dynvision_snn.energy.hardware import hardware_profiles as hardware_profiles
from dynvision_snn.energy.hardware import resolve_profile as resolve_profile
from dynvision_snn.energy.layers import LayerCounts as LayerCounts
from dynvision_snn.energy.layers import LayerEnergy as LayerEnergy
from dynvision_snn.energy.memory import MemoryModel as MemoryModel
from dynvision_snn.energy.meter import EnergyMeter as EnergyMeter
from dynvision_snn.energy.pricing import Joules as Joules
from dynvision_snn.energy.samples import SampleEnergy as SampleEnergy
from dynvision_snn.energy.samples import Spread as Spread
