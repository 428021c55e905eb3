"""Without a GPU Triton's kernels run in its interpreter. It looks when it is imported, which torch does too."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
