"""Lists the ONNX operators that static graphs may use, and their OpenVINO operations.

OpenVINO documents the operations of the NPU plugin ("Supported Operations", the NPU column, and the
operation sets of the NPU compiler). A graph with another operator is refused when it is made, so
that it does not fail later on the target machine.
"""

from collections.abc import Mapping

from whisper_npu.errors import ModelError

SUPPORTED: Mapping[str, str] = {
    "Add": "Add",
    "Cast": "Convert",
    "Concat": "Concat",
    "Conv": "Convolution",
    "DequantizeLinear": "Convert, Subtract, Multiply",
    "Div": "Divide",
    "Equal": "Equal",
    "Erf": "Erf",
    "Gather": "Gather",
    "GatherElements": "GatherElements",
    "Gelu": "Gelu",
    "Gemm": "MatMul",
    "Identity": "none",
    "LayerNormalization": "MVN, Multiply, Add",
    "Less": "Less",
    "LessOrEqual": "LessEqual",
    "MatMul": "MatMul",
    "Min": "Minimum",
    "Mul": "Multiply",
    "Pow": "Power",
    "QuantizeLinear": "FakeQuantize",
    "ReduceMean": "ReduceMean",
    "Reshape": "Reshape",
    "Slice": "StridedSlice",
    "Softmax": "Softmax",
    "Split": "VariadicSplit",
    "Sqrt": "Sqrt",
    "Squeeze": "Squeeze",
    "Sub": "Subtract",
    "Tanh": "Tanh",
    "Transpose": "Transpose",
    "Unsqueeze": "Unsqueeze",
    "Where": "Select",
}


def check_operators(graph: str, operators: set[str]) -> None:
    """Refuse a graph with an operator that the NPU plugin does not document.

    Raises:
        ModelError: there are such operators; the message names them.
    """
    unknown = sorted(operators - SUPPORTED.keys())
    if unknown:
        raise ModelError(
            f"{graph} uses {', '.join(unknown)}, which the NPU plugin does not document; export "
            "the model again with `whisper-npu export`"
        )
