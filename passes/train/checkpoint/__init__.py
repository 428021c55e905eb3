"""Checkpoints: a training that was stopped or killed goes on, bit for bit."""
