"""The restoration app: a thin page over `fewstep.restoration`."""
