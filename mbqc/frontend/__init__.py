"""From a PyTorch model to a graph."""
