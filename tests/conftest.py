"""What all tests run under."""

import os

import torch
from hypothesis import settings

# the same examples in every run, however slow the machine
settings.register_profile("laws", deadline=None, derandomize=True, database=None)
settings.load_profile("laws")

# without a GPU Triton's kernels run in its interpreter; it looks when it is imported, which torch does too
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
