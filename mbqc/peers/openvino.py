"""OpenVINO: int8 as NNCF quantizes it after training."""

from __future__ import annotations

from collections.abc import Sequence

import nncf
import numpy as np
import numpy.typing as npt
import openvino

from mbqc.peers import Batch, Call, Runner, Subject


def runners(subject: Subject) -> dict[str, Runner]:
    """The converted, quantized and compiled model."""
    first = subject.batches[0]
    shapes = [tuple(tensor.shape) for tensor in first]
    converted = openvino.convert_model(subject.net, example_input=first, input=shapes)
    data = nncf.Dataset([_arrays(batch) for batch in subject.batches])
    quantized = nncf.quantize(converted, data, preset=nncf.QuantizationPreset.MIXED, subset_size=len(subject.batches))
    settings = {"INFERENCE_NUM_THREADS": subject.threads, "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(quantized, "CPU", settings)

    def bind(inputs: Batch) -> Call:
        request = compiled.create_infer_request()
        for index, tensor in enumerate(inputs):  # into its own memory: nothing is copied in a call
            request.get_input_tensor(index).data[:] = tensor.numpy()

        def call() -> Sequence[npt.NDArray[np.generic]]:
            request.infer()
            return [tensor.data for tensor in request.output_tensors]

        return call

    return {"openvino int8": bind}


def _arrays(batch: Batch) -> dict[int, object]:
    return {index: tensor.contiguous().numpy() for index, tensor in enumerate(batch)}
