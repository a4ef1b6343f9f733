"""Score distillation: a generator moves along the difference of two scores."""
