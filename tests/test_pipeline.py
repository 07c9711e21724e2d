"""The passes in order, one broken pass undone as a whole, and a result that is a fixpoint."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn, ops
from torch.fx import GraphModule, Node

from models import digits, pass_layer, resnet
from passfx.capture.program import Captured
from passfx.errors import PassError, SourceError
from passfx.graph.editor import Editor, Match, refuse
from passfx.graph.query import is_call
from passfx.graph.text import to_text
from passfx.passes import PASSES, Pass
from passfx.pipeline import Plan, optimize_graph, run_passes, structural_failure
from passfx.target import CPU, CUDA
from tests.helpers import assert_preserves, captured, randomize
from tests.helpers import ops as count

aten = ops.aten
NAMES = [kind.name for kind in PASSES]


class Net(nn.Module):
    """Something for most passes: dead code, a norm, a quotient and a product by one, two clips."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        randomize(self)

    def forward(self, x: Tensor, unused: Tensor) -> Tensor:
        torch.sin(x)
        y = self.norm(self.conv(x)) / 1.0 * 1.0
        return torch.clamp(torch.relu(y), max=6.0)


INPUTS = (torch.linspace(-1, 1, 2 * 3 * 64).reshape(2, 3, 8, 8), torch.zeros(2))


@pytest.fixture(scope="module")
def program() -> Captured:
    torch.manual_seed(0)
    return captured(Net(), *INPUTS)


# Which passes run, in which order


def test_the_passes_of_a_plan_are_for_its_target() -> None:
    assert all(item.target is CPU for item in Plan().passes)
    assert all(item.target is CUDA for item in Plan(CUDA).passes)


def test_all_passes_run_in_the_order_of_the_table() -> None:
    assert [item.name for item in Plan().passes] == NAMES


def test_skip_and_only_keep_the_order() -> None:
    assert [item.name for item in Plan(skip=(NAMES[1],)).passes] == [NAMES[0], *NAMES[2:]]
    assert [item.name for item in Plan(only=(NAMES[3], NAMES[1])).passes] == [NAMES[1], NAMES[3]]
    chosen = Plan(skip=(NAMES[1],), only=(NAMES[1], NAMES[2])).passes
    assert [item.name for item in chosen] == [NAMES[2]]


@pytest.mark.parametrize("option", ["skip", "only"])
def test_an_unknown_pass_is_an_error_that_lists_the_passes(option: str) -> None:
    with pytest.raises(SourceError) as error:
        Plan(**{option: ("fold-everything",)})
    assert str(error.value) == (
        f"there is no pass 'fold-everything'; the passes are {', '.join(NAMES)}"
    )


@pytest.mark.parametrize("option", ["skip", "only"])
def test_a_misspelt_pass_suggests_the_nearest(option: str) -> None:
    with pytest.raises(SourceError, match=r"^there is no pass 'colapse'; did you mean collapse\?$"):
        Plan(**{option: ("colapse",)})


@pytest.mark.parametrize("option", ["skip", "only"])
@pytest.mark.parametrize("old", ["move-pools", "move-upsamples"])
def test_the_old_name_of_a_pass_is_an_error_that_tells_the_new_one(option: str, old: str) -> None:
    with pytest.raises(SourceError) as error:
        Plan(**{option: (old,)})
    assert str(error.value) == f"the pass {old!r} is now 'move-resampling'"
    assert "move-resampling" in NAMES


def test_progress_is_told_each_pass_as_it_starts(program: Captured) -> None:
    told: list[str] = []
    optimize_graph(program, Plan().passes, progress=told.append)
    rounds = [told[start : start + len(NAMES)] for start in range(0, len(told), len(NAMES))]
    assert len(rounds) >= 2 and all(names == NAMES for names in rounds)


def test_each_pass_reports_what_it_did(program: Captured) -> None:
    graph_module, runs = optimize_graph(program, Plan().passes)
    assert count(graph_module) == {"conv2d": 1, "clamp": 1}
    assert [run.name for run in runs] == NAMES
    rewrites = {run.name: len(run.rewrites) for run in runs if run.rewrites}
    # dead code; quotient and product; norm; clips
    assert rewrites == {
        "remove-unused": 1,
        "remove-noops": 2,
        "collapse": 1,
        "compose-clips": 1,
    }
    assert not any(run.rolled_back for run in runs)
    assert all(run.seconds > 0 for run in runs)


def test_a_skipped_pass_leaves_its_work_undone(program: Captured) -> None:
    graph_module, _ = optimize_graph(program, Plan(skip=("collapse",)).passes)
    assert count(graph_module) == {"conv2d": 1, "batch_norm": 1, "clamp": 1}


# The captured graph, and the result


def test_the_captured_graph_is_never_changed(program: Captured) -> None:
    graph_module = program.graph_module
    listing, text = str(graph_module.graph), to_text(graph_module)
    state = {name: tensor.clone() for name, tensor in graph_module.state_dict().items()}
    result = graph_module(*INPUTS)
    optimized, _ = optimize_graph(program, Plan().passes)
    assert optimized is not graph_module and to_text(optimized) != text
    assert (str(graph_module.graph), to_text(graph_module)) == (listing, text)
    assert state.keys() == graph_module.state_dict().keys()
    assert all(torch.equal(state[name], new) for name, new in graph_module.state_dict().items())
    assert torch.equal(graph_module(*INPUTS), result)


def test_the_result_is_called_like_the_model(program: Captured) -> None:
    optimized, _ = optimize_graph(program, Plan().passes)
    wanted = program.graph_module(*INPUTS)
    torch.testing.assert_close(optimized(*INPUTS), wanted)
    torch.testing.assert_close(optimized(INPUTS[0], unused=INPUTS[1]), wanted)


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda: digits.digits_resnet(pretrained=False), (2, 1, 8, 8)),
        (lambda: resnet.resnet18(), (2, 3, 64, 64)),
        (lambda: resnet.resnet18("preact"), (2, 3, 64, 64)),
        (lambda: pass_layer.PassVariants(), (2, 8, 9, 9)),
    ],
    ids=["digits", "resnet18", "resnet18-preact", "variants"],
)
def test_a_second_run_rewrites_nothing(
    build: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    model = randomize(build()).double()
    inputs = [torch.randn(shape).double()]
    graph_module, first = optimize_graph(captured(model, *inputs), Plan().passes)
    text = to_text(graph_module)
    again = run_passes(graph_module, Plan().passes)
    assert any(run.rewrites for run in first)
    assert [rewrite for run in again for rewrite in run.rewrites] == []
    assert to_text(graph_module) == text
    assert_preserves(graph_module, model, inputs, 1e-10)


def test_without_verification_certificates_are_not_run(program: Captured) -> None:
    class Wrong(Pass):
        name = "wrong"

        def match(self, node: Node) -> Match | None:
            return Match(node, (node,), "a sine") if is_call(node, aten.relu) else None

        def rewrite(self, editor: Editor, match: Match) -> Node:
            return editor.call(aten.sin.default, match.at.args[0])

    proven, (run,) = optimize_graph(program, [Wrong()])
    assert count(proven)["sin"] == 0 and not run.rewrites
    trusted, (run,) = optimize_graph(program, [Wrong()], verify=False)
    assert count(trusted)["sin"] == 1 and run.rewrites[0].error is None


# Broken passes


def no_damage(graph_module: GraphModule) -> None:
    pass


@dataclass(frozen=True)
class Broken(Pass):
    """Rewrites something rightly, and breaks the graph on the way."""

    name = "broken"

    damage: Callable[[GraphModule], None] = no_damage

    def match(self, node: Node) -> Match | None:
        return Match(node, (node,), "a clamp") if is_call(node, aten.relu) else None

    def rewrite(self, editor: Editor, match: Match) -> Node:
        self.damage(editor.graph_module)
        return editor.call(aten.clamp.default, match.at.args[0], 0.0)


@dataclass(frozen=True)
class BrokenOutside(Pass):
    """Breaks the graph without any edit that the editor could know of."""

    name = "broken"

    damage: Callable[[GraphModule], None] = no_damage

    def match(self, node: Node) -> None:
        if is_call(node, aten.relu):
            self.damage(node.graph.owning_module)


def last_input(graph_module: GraphModule) -> Node:
    return [node for node in graph_module.graph.nodes if node.op == "placeholder"][-1]


def erase_input(graph_module: GraphModule) -> None:
    graph_module.graph.erase_node(last_input(graph_module))


def add_input(graph_module: GraphModule) -> None:
    with graph_module.graph.inserting_after(last_input(graph_module)):
        graph_module.graph.placeholder("more")


def drop_output(graph_module: GraphModule) -> None:
    graph_module.graph.output_node().args = ((),)


def reshape_output(graph_module: GraphModule) -> None:
    first = next(filter(is_call, graph_module.graph.nodes))
    graph_module.graph.output_node().args = ((first.args[0],),)


def use_before_definition(graph_module: GraphModule) -> None:
    nodes = list(filter(is_call, graph_module.graph.nodes))
    nodes[0].replace_input_with(nodes[0].args[0], nodes[-1])


DAMAGES = [
    (erase_input, "the inputs were ['x', 'unused'], now ['x']"),
    (add_input, "the inputs were ['x', 'unused'], now ['x', 'unused', 'more']"),
    (drop_output, "the model had 1 outputs, now 0"),
    (reshape_output, "output 0 changed its shape or dtype"),
    (use_before_definition, "RuntimeError: Argument '"),
]


@pytest.mark.parametrize(("damage", "reason"), DAMAGES)
@pytest.mark.parametrize("kind", [Broken, BrokenOutside])
def test_a_broken_pass_is_undone_and_the_others_still_run(
    program: Captured, kind: Callable[..., Pass], damage: Callable[[GraphModule], None], reason: str
) -> None:
    passes = Plan(skip=("compose-clips",)).passes
    wanted, _ = optimize_graph(program, passes)
    graph_module, runs = optimize_graph(program, [*passes[:2], kind(damage=damage), *passes[2:]])
    (broken,) = (run for run in runs if run.name == "broken")
    assert broken.rolled_back and broken.rewrites == ()
    reasons = [refusal.reason for refusal in broken.refusals]
    assert all(given.startswith(f"the pass was undone: {reason}") for given in reasons)
    assert reasons and len(reasons) == len(set(reasons))
    assert to_text(graph_module) == to_text(wanted)
    assert not any(run.rolled_back for run in runs if run is not broken)
    torch.testing.assert_close(graph_module(*INPUTS), program.graph_module(*INPUTS))


def test_a_pass_that_raises_is_named_with_those_before_it(program: Captured) -> None:
    class Raising(Pass):
        name = "raising"

        def match(self, node: Node) -> Match | None:
            raise IndexError("off by one\nand much more")

    passes = [*Plan(only=("remove-unused", "collapse")).passes, Raising()]
    reason = "the pass raising, after remove-unused, collapse: IndexError: off by one$"
    with pytest.raises(PassError, match=reason) as raised:
        optimize_graph(program, passes)
    assert isinstance(raised.value.__cause__, IndexError)
    with pytest.raises(PassError, match="^the pass raising: IndexError"):
        optimize_graph(program, passes[-1:])


class TwoRelus(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(torch.sin(x))


def test_a_replacement_that_reads_what_it_replaces_is_undone() -> None:
    class Cycle(Pass):
        name = "cycle"

        def match(self, node: Node) -> Match | None:
            return Match(node, (node,), "relu of itself") if is_call(node, aten.relu) else None

        def rewrite(self, editor: Editor, match: Match) -> Node:
            return editor.call(aten.relu.default, match.at)

    program = captured(TwoRelus(), torch.randn(3))
    graph_module, (run,) = optimize_graph(program, [Cycle()])
    assert run.rolled_back and run.rewrites == ()
    assert to_text(graph_module) == to_text(program.graph_module)


def test_refusals_of_a_pass_are_listed_once_over_all_rounds(program: Captured) -> None:
    class Refusing(Pass):
        name = "refusing"

        def match(self, node: Node) -> object:
            return refuse(node, "unsafe") if is_call(node, aten.conv2d) else None

    _, runs = optimize_graph(program, [Refusing(), *Plan(only=("remove-noops",)).passes])
    assert [(refusal.at, refusal.reason) for refusal in runs[0].refusals] == [("conv2d", "unsafe")]


def test_the_constants_of_an_undone_pass_are_detached(program: Captured) -> None:
    class Attaching(Pass):
        name = "attaching"

        def match(self, node: Node) -> Match | None:
            return Match(node, (node,), "a zero added") if is_call(node, aten.relu) else None

        def rewrite(self, editor: Editor, match: Match) -> Node:
            zero = editor.constant(torch.zeros(1), torch.float32, "zero")
            erase_input(editor.graph_module)
            inner = editor.call(aten.relu.default, match.at.args[0])
            return editor.call(aten.add.Tensor, inner, zero)

    untouched, _ = optimize_graph(program, [])
    graph_module, (run,) = optimize_graph(program, [Attaching()])
    assert run.rolled_back
    assert graph_module.state_dict().keys() == untouched.state_dict().keys()


def test_structural_failure_compares_results_by_type(program: Captured) -> None:
    graph = program.graph_module.graph
    assert structural_failure(graph, graph) is None
    other = captured(Net().double(), *(item.double() for item in INPUTS)).graph_module.graph
    assert structural_failure(graph, other) == "output 0 changed its shape or dtype"
