"""Objectives: how a network and a batch become a loss."""
