"""Losses over timesteps: masked cross-entropy, the energy of activity, and their weighted sum."""

from dynvision_snn.losses.base import (
    BaseLoss as BaseLoss,
)
from dynvision_snn.losses.criterion import (
    Criterion as Criterion,
)
from dynvision_snn.losses.criterion import (
    LossTerm as LossTerm,
)
from dynvision_snn.losses.criterion import (
    build_criterion as build_criterion,
)
from dynvision_snn.losses.cross_entropy import (
    CrossEntropyLoss as CrossEntropyLoss,
)
from dynvision_snn.losses.energy import (
    EnergyLoss as EnergyLoss,
)
from dynvision_snn.losses.synops import (
    SynopsLoss as SynopsLoss,
)
