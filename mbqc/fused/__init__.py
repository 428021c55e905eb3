"""Fake-quantization and moment correction for training, forward and backward, each as one operation.

Dense float32 tensors on the CPU run in native code, everything else in torch; `functions` has both. The numbers are
those of `mbqc.numerics` either way. Native code runs on the thread that calls it: memory is what it waits for, and a
second thread did not pay where it was measured, on tensors up to 16 MB.
"""
