"""Trajectory distillation: a student learns to jump along the paths of an ODE."""
