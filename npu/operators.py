"""The operators static graphs may use, each with the OpenVINO operation it becomes.

OpenVINO documents the NPU plugin's operations per device ("Supported Operations", the NPU column,
and the operation sets of the NPU compiler); a graph with any other operator is refused when it is
made, not when it is compiled on somebody's laptop.
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
    """Refuse a graph with an operator the NPU plugin does not document.

    Raises:
        ModelError: names the operators.
    """
    unknown = sorted(operators - SUPPORTED.keys())
    if unknown:
        raise ModelError(
            f"{graph} uses {', '.join(unknown)}, which the NPU plugin does not document; export "
            "the model again with `whisper-npu export`"
        )
