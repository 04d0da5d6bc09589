"""Biologically timed simulation, training and energy budgets for spiking networks."""

__version__ = "0.1.0.dev0"
