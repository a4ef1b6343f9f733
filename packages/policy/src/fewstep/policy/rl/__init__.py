"""Offline reinforcement learning: transitions, critics, the alternation of critic and actor, training."""
