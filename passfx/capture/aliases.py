"""Which results of a traced program share memory, before anything makes it functional."""

from collections.abc import Hashable

from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx import Node

from passfx.graph.aliases import CONSTANT, Aliases, aliases


def program_aliases(program: ExportedProgram) -> Aliases:
    """The aliases of a program, named as those of the graph that is captured from it."""
    nodes = program.graph.find_nodes(op="placeholder")
    sources: dict[Node, Hashable] = {}
    place = 0
    for node, spec in zip(nodes, program.graph_signature.input_specs, strict=True):
        is_input = spec.kind is InputKind.USER_INPUT
        sources[node] = f"input {place}" if is_input else CONSTANT
        place += is_input
    returned = program.graph.output_node().args[0]
    specs = program.graph_signature.output_specs
    assert isinstance(returned, list | tuple)
    pairs = zip(returned, specs, strict=True)
    return aliases([item for item, spec in pairs if spec.kind is OutputKind.USER_OUTPUT], sources)
