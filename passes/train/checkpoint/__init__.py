"""Checkpoints: a training that was stopped or killed goes on, bit for bit.

Except where a map-style dataset draws from a generator of its own: no checkpoint knows where that stood.
"""
