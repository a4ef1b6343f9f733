"""RL-100: a denoising chain as a chain of decisions, improved offline behind a gate, then online."""
