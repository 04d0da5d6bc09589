"""Real data in, in time. Nothing here downloads: files come with a library or from the user."""

from dynvision_snn.data.digits import load_digits as load_digits
from dynvision_snn.data.events import NMNIST as NMNIST
from dynvision_snn.data.events import Events as Events
from dynvision_snn.data.events import HeidelbergSpikes as HeidelbergSpikes
from dynvision_snn.data.events import read_heidelberg as read_heidelberg
from dynvision_snn.data.events import read_nmnist as read_nmnist
from dynvision_snn.data.events import time_first as time_first
from dynvision_snn.data.idx import load_mnist as load_mnist
from dynvision_snn.data.idx import read_idx as read_idx
