"""Scans: a neuron's whole time loop as one operation, with its analytic surrogate gradient."""

from dynvision_snn.engine.scans.scan import Scanned as Scanned
from dynvision_snn.engine.scans.scan import fits as fits
from dynvision_snn.engine.scans.scan import scan as scan
