"""The policy app: a thin page over `fewstep.policy`."""
