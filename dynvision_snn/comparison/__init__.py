"""Several models side by side: compared, shown, saved, read back, joined with other results."""

from dynvision_snn.comparison.comparison import DEFAULT_PROFILES as DEFAULT_PROFILES
from dynvision_snn.comparison.comparison import DEFAULT_RULES as DEFAULT_RULES
from dynvision_snn.comparison.comparison import Comparison as Comparison
from dynvision_snn.comparison.comparison import compare as compare
from dynvision_snn.comparison.joining import join as join
from dynvision_snn.comparison.loading import load as load
from dynvision_snn.comparison.loading import load_all as load_all
from dynvision_snn.comparison.loading import rebuild as rebuild
