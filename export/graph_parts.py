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
    last_use: dict[int, int] = {}  # by the index of an operation: the last operation that reads it
    place = {operation.get_name(): index for index, operation in enumerate(operations)}
    constant = [False] * len(operations)
    for index, operation in enumerate(operations):
        sources = [place[value.get_node().get_name()] for value in operation.input_values()]
        is_parameter = operation.get_type_name() == "Parameter"
        constant[index] = not is_parameter and all(constant[source] for source in sources)
        last_use.update(dict.fromkeys(sources, index))
    weight = 0
    reach = 0  # the last operation that reads a result of the operations before this one
    for index, operation in enumerate(operations):
        if constant[index]:
            if operation.get_type_name() == "Constant":
                weight += operation.get_byte_size()
            continue
        end = last_use.get(index, index)
        if weight >= part_bytes and reach <= index < end and operation.get_output_size() == 1:
            yield operation.output(0)
            weight = 0
        reach = max(reach, end)
