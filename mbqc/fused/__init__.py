"""Fake-quantization and moment correction for training, forward and backward, each as one operation.

Dense float32 tensors run in native code on the CPU and in Triton on a GPU, everything else in torch; `functions` has
all of it, `kernels` chooses. The numbers are those of `mbqc.numerics` each time. Native code runs on the thread that
calls it: memory is what it waits for, and a second thread did not pay where it was measured, on tensors up to 16 MB.
Triton is part of torch where that is built for CUDA on Linux; where it is missing, torch runs on the GPU.
"""
