"""Lightning as the engine: hours of training, stopped and resumed, on several processes."""

import importlib.util

from dynvision_snn import errors as errors

if importlib.util.find_spec("lightning") is None:
    raise errors.MissingExtraError("lightning", "training", "Training with Lightning")

from dynvision_snn.training.lightning.callbacks import EnergyMonitor as EnergyMonitor
from dynvision_snn.training.lightning.checkpoints import AtomicCheckpointIO as AtomicCheckpointIO
from dynvision_snn.training.lightning.checkpoints import BestCheckpoint as BestCheckpoint
from dynvision_snn.training.lightning.checkpoints import ResumeCheckpoint as ResumeCheckpoint
from dynvision_snn.training.lightning.checkpoints import read_checkpoint as read_checkpoint
from dynvision_snn.training.lightning.module import TimedClassifier as TimedClassifier
from dynvision_snn.training.lightning.running import TrainingResult as TrainingResult
from dynvision_snn.training.lightning.running import is_first_process as is_first_process
from dynvision_snn.training.lightning.running import quieten as quieten
from dynvision_snn.training.lightning.running import read_result as read_result
from dynvision_snn.training.lightning.running import simulate_checkpoint as simulate_checkpoint
from dynvision_snn.training.lightning.running import train as train
from dynvision_snn.training.lightning.sweeping import Sweep as Sweep
from dynvision_snn.training.lightning.sweeping import sweep as sweep
