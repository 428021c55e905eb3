"""Coresets: the share of the training data on which each width trains."""
