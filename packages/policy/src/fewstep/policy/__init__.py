"""Few-step diffusion for robot policies: demonstrations, one-step students, reinforcement learning."""
