"""Adversarial heads: features, heads, and the losses between them."""
