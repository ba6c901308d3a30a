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

# Operators of ONNX Runtime's quantizers.
_QUANTIZED = {
    *("ConvInteger", "DynamicQuantizeLinear", "MatMulInteger"),
    *("GatherBlockQuantized", "MatMulBnb4", "MatMulNBits"),
}


def check_operators(graph: str, operators: set[str], way_on: str) -> None:
    """Refuse a graph with an operator that the NPU plugin does not document.

    Args:
        graph: its name.
        operators: its operators.
        way_on: advice, for the message.

    Raises:
        ModelError: there are such operators; the message names them.
    """
    unknown = sorted(operators - SUPPORTED.keys())
    if unknown:
        raise ModelError(
            f"{graph} uses {', '.join(unknown)}, which the NPU plugin does not document: {way_on}"
        )


def require_floating_point(graph: str, operators: set[str], way_on: str) -> None:
    """Refuse a graph that another exporter's tool has quantized.

    Args:
        graph: its name.
        operators: its operators.
        way_on: advice, for the message.

    Raises:
        ModelError: it is quantized; the message names the operators.
    """
    found = sorted(operators & _QUANTIZED)
    if found:
        raise ModelError(
            f"the NPU's static graphs are made of graphs in floating point, and {graph} is "
            f"quantized ({', '.join(found)}): {way_on}"
        )
