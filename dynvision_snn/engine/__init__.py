"""How inputs become membranes: step by step, which is the reference, and faster plans beside it."""
