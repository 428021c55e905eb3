"""ONNX Runtime: float32, and static int8 (QDQ, activations unsigned, weights signed and per channel)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from mbqc.peers import Batch, Call, Runner, Subject

OPSET = 17


def runners(subject: Subject) -> dict[str, Runner]:
    """Sessions of the exported model and of its quantized form."""
    with TemporaryDirectory() as folder:
        exported, prepared, quantized = (str(Path(folder) / f"{name}.onnx") for name in ("exported", "float", "int8"))
        names = input_names(subject.batches[0])
        torch.onnx.export(
            subject.net, subject.batches[0], exported, dynamo=False, opset_version=OPSET, input_names=names
        )
        quant_pre_process(exported, prepared)
        quantize_static(
            prepared,
            quantized,
            _Reader(subject.batches),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return {
            "onnxruntime float32": _runner(prepared, subject.threads),
            "onnxruntime int8": _runner(quantized, subject.threads),
        }


def input_names(batch: Batch) -> list[str]:
    """Names for the inputs of the exported model."""
    return [f"input{index}" for index in range(len(batch))]


def _arrays(batch: Batch) -> dict[str, npt.NDArray[np.generic]]:
    return dict(zip(input_names(batch), (tensor.contiguous().numpy() for tensor in batch), strict=True))


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Calibration batches one after the other, as the quantizer asks for them."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self._batches: Iterator[Batch] = iter(batches)

    def get_next(self) -> dict[str, npt.NDArray[np.generic]] | None:
        batch = next(self._batches, None)
        return None if batch is None else _arrays(batch)


def _runner(path: str, threads: int) -> Runner:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # its threads would otherwise go on spinning during the next call, which is another runtime's
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def bind(inputs: Batch) -> Call:
        arrays = _arrays(inputs)
        return lambda: session.run(None, arrays)

    return bind
