"""Training a wrapped model: a plain loop, or Lightning as the engine; to an energy limit or not.

`TimedClassifier` and `EnergyMonitor` need the extra ``training``, and are imported when asked for,
so that the plain loop does without.
"""

import typing

from dynvision_snn.training.loop import Epoch as Epoch
from dynvision_snn.training.loop import fit as fit
from dynvision_snn.training.monitor import Limits as Limits
from dynvision_snn.training.monitor import Sign as Sign
from dynvision_snn.training.monitor import signs as signs
from dynvision_snn.training.target import EnergyTarget as EnergyTarget
from dynvision_snn.varying import VaryingPresentation as VaryingPresentation

if typing.TYPE_CHECKING:
    from dynvision_snn.training.lightning import EnergyMonitor as EnergyMonitor
    from dynvision_snn.training.lightning import TimedClassifier as TimedClassifier

_OF_LIGHTNING = ("EnergyMonitor", "TimedClassifier")


def __getattr__(name: str) -> typing.Any:
    if name in _OF_LIGHTNING:
        from dynvision_snn.training import lightning as lightning

        return vars(lightning)[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
