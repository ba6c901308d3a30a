"""Cuts a graph into parts that run one after another.

OpenVINO keeps each matrix of a compiled graph twice: as it is in the file, and packed for the
processor. Of a graph in parts, only one part at a time is packed.
"""

from collections.abc import Iterator

import openvino as ov
from openvino import opset13


def split_graph(model: ov.Model, part_bytes: int) -> list[ov.Model]:
    """Cut a graph with one input and one output where a single tensor connects both sides.

    Args:
        model: The graph; its nodes become those of the parts.
        part_bytes: A part ends at the first such place after this many bytes of weights.

    Returns:
        The parts in the order of execution. The output of each is the input of the next.
    """
    parts = []
    parameters = model.get_parameters()
    # A list, because the graph changes below.
    for output in list(_cuts(model, part_bytes)):
        following = opset13.parameter(output.get_partial_shape(), output.get_element_type())
        for reader in output.get_target_inputs():
            reader.replace_source_output(following.output(0))
        parts.append(ov.Model([output], parameters))
        parameters = [following]
    return [*parts, ov.Model(model.get_results(), parameters)]


def _cuts(model: ov.Model, part_bytes: int) -> Iterator[ov.Output]:
    """The outputs after which everything that follows depends on nothing before but them."""
    operations = model.get_ordered_ops()
    place = {operation.get_name(): index for index, operation in enumerate(operations)}
    held: dict[int, int] = {}  # by the index of a constant operation: bytes that no operation read
    last_use: dict[int, int] = {}  # by the index of an operation: the last operation that reads it
    weight = [0] * len(operations)  # bytes of the constants that an operation reads first
    for index, operation in enumerate(operations):
        kind = operation.get_type_name()
        sources = [place[value.get_node().get_name()] for value in operation.input_values()]
        size = operation.get_byte_size() if kind == "Constant" else 0
        size += sum(held.get(source, 0) for source in sources)
        is_constant = kind != "Parameter" and all(source in held for source in sources)
        held.update({source: 0 for source in sources if source in held})
        if is_constant:
            held[index] = size
        else:
            weight[index] = size
        last_use.update(dict.fromkeys(sources, index))
    total = 0
    reach = 0  # the last operation that reads a result of the operations before this one
    for index, operation in enumerate(operations):
        if index in held:
            continue
        total += weight[index]
        end = last_use.get(index, index)
        only_link = reach <= index < end and operation.get_output_size() == 1
        if total >= part_bytes and only_link and operations[end].get_type_name() != "Result":
            yield operation.output(0)
            total = 0
        reach = max(reach, end)
