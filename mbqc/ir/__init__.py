"""The graph that passes work on: `torch.fx.GraphModule` in one canonical, module-level form."""
