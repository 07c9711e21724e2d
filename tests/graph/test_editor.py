"""Edits: committed with a record, or undone without a trace; constants and provenance."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn, ops
from torch.export import Dim
from torch.fx import GraphModule, Node

from passfx.graph.editor import Certificate, Edit, Editor, Match
from passfx.graph.query import attribute, constant, is_call, module_path, tensor
from passfx.graph.text import to_text
from passfx.pipeline import optimize_graph
from passfx.record import Refusal, Rewrite
from tests.helpers import captured

aten = ops.aten


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.twice = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.twice(self.twice(self.conv(self.twice(self.conv(x)))))


def writable(model: nn.Module, *inputs: Tensor, **options: object) -> GraphModule:
    graph_module, _ = optimize_graph(captured(model, *inputs, **options), [])
    return graph_module


@pytest.fixture
def net() -> GraphModule:
    return writable(Net(), torch.randn(2, 3, 4, 4))


def proven(edit: Edit) -> Certificate:
    return Certificate(1e-12)


def disproven(edit: Edit) -> Certificate:
    return Certificate(0.5, "relative error 5.0e-01 on random inputs")


def calls(graph_module: GraphModule, packet: object) -> list[Node]:
    return [node for node in graph_module.graph.nodes if is_call(node, packet)]


def replace_conv(editor: Editor, conv: Node, name: str = "conv.weight") -> Edit:
    """The convolution with its weight doubled."""
    with editor.edit(Match(conv, (conv,), "doubled")) as edit:
        old = conv.args[1]
        assert isinstance(old, Node)
        weight = editor.constant(2 * constant(old).double(), torch.float32, name)
        x, _, *rest = conv.args
        edit.replacements[conv] = editor.call(aten.conv2d.default, x, weight, *rest)
    return edit


def test_a_proven_edit_is_committed_and_recorded(net: GraphModule) -> None:
    x = torch.randn(2, 3, 4, 4)
    before = net(x)
    last, relu = calls(net, aten.relu)[-1], calls(net, aten.relu)[-2]
    editor = Editor(net, "test", proven)
    with editor.edit(Match(last, (relu, last), "two relus into one")) as edit:
        edit.replacements[last] = editor.call(aten.relu.default, relu.args[0])
    editor.finish()
    (added,) = (node.name for node in edit.added)
    removed = (relu.name, last.name)
    assert editor.rewrites == [
        Rewrite(last.name, "twice", "two relus into one", removed, (added,), 1e-12)
    ]
    assert editor.modified and editor.refusals == []
    assert len(calls(net, aten.relu)) == 2
    net.graph.lint()
    assert torch.equal(net(x), before)


def test_a_node_that_stays_in_use_is_not_removed(net: GraphModule) -> None:
    first, *_, last = calls(net, aten.relu)
    editor = Editor(net, "test", proven)
    with editor.edit(Match(last, (first, last), "skipped")) as edit:
        edit.replacements[last] = first
    assert editor.rewrites[0].removed == (last.name,)
    assert editor.rewrites[0].added == ()
    assert not first._erased


def test_a_disproven_edit_leaves_the_graph_as_it_was(net: GraphModule) -> None:
    text, listing, state = to_text(net), str(net.graph), set(net.state_dict())
    conv = calls(net, aten.conv2d)[0]
    editor = Editor(net, "test", disproven)
    replace_conv(editor, conv)
    editor.finish()
    assert (to_text(net), str(net.graph), set(net.state_dict())) == (text, listing, state)
    assert not editor.modified
    reason = "undone: relative error 5.0e-01 on random inputs"
    assert editor.refusals == [Refusal(conv.name, "conv", reason, undone=True)]


def other_shape(editor: Editor, node: Node) -> Node:
    return editor.call(aten.reshape.default, node.args[0], [2, -1])


def other_dtype(editor: Editor, node: Node) -> Node:
    return editor.call(aten._to_copy.default, node.args[0], dtype=torch.float64)


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (other_shape, "is torch.float32 (2, 3, 4, 4), its replacement reshape is torch.float32 (2"),
        (other_dtype, "is torch.float32 (2, 3, 4, 4), its replacement _to_copy is torch.float64"),
    ],
)
def test_a_replacement_of_another_type_is_refused_before_its_certificate(
    net: GraphModule, build: Callable[[Editor, Node], Node], reason: str
) -> None:
    def unreachable(edit: Edit) -> Certificate:
        raise AssertionError("there is nothing to prove")

    text = to_text(net)
    relu = calls(net, aten.relu)[0]
    editor = Editor(net, "test", unreachable)
    with editor.edit(Match(relu, (relu,), "another type")) as edit:
        edit.replacements[relu] = build(editor, relu)
    assert to_text(net) == text and not editor.modified
    assert editor.refusals[0].reason.startswith(f"undone: {relu.name} {reason}")


def add_and_fail(editor: Editor, relu: Node) -> None:
    editor.call(aten.relu.default, relu.args[0])
    raise ZeroDivisionError


def test_an_exception_inside_an_edit_undoes_it(net: GraphModule) -> None:
    listing, relu = str(net.graph), calls(net, aten.relu)[0]
    editor = Editor(net, "test", proven)
    with pytest.raises(ZeroDivisionError), editor.edit(Match(relu, (relu,), "fails")):
        add_and_fail(editor, relu)
    assert str(net.graph) == listing and editor.rewrites == editor.refusals == []


def test_a_call_that_cannot_be_inferred_undoes_the_edit(net: GraphModule) -> None:
    listing, relu = str(net.graph), calls(net, aten.relu)[0]
    editor = Editor(net, "test", proven)
    with pytest.raises(RuntimeError), editor.edit(Match(relu, (relu,), "fails")):
        editor.call(aten.reshape.default, relu.args[0], [5, 5])
    assert str(net.graph) == listing


def test_an_exception_in_the_certificate_undoes_the_edit(net: GraphModule) -> None:
    def broken(edit: Edit) -> Certificate:
        raise ZeroDivisionError

    listing, conv = str(net.graph), calls(net, aten.conv2d)[0]
    with pytest.raises(ZeroDivisionError):
        replace_conv(Editor(net, "test", broken), conv)
    assert str(net.graph) == listing


def test_the_graph_is_only_written_inside_an_edit(net: GraphModule) -> None:
    editor = Editor(net, "test", proven)
    with pytest.raises(AssertionError, match="inside an edit"):
        editor.call(aten.relu.default, calls(net, aten.relu)[0])
    with pytest.raises(AssertionError, match="inside an edit"):
        editor.constant(torch.ones(1), torch.float32, "one")


def test_the_same_refusal_is_recorded_once(net: GraphModule) -> None:
    editor = Editor(net, "test", proven)
    for reason in ("unsafe", "unsafe", "unsound"):
        editor.refuse(Refusal("relu", "", reason))
    assert [refusal.reason for refusal in editor.refusals] == ["unsafe", "unsound"]


def test_a_shared_weight_is_never_overwritten() -> None:
    model = Net()
    kept = model.conv.weight.detach().clone()
    net = writable(model, torch.randn(2, 3, 4, 4))
    first, second = calls(net, aten.conv2d)
    assert first.args[1] is second.args[1]
    editor = Editor(net, "test", proven)
    replace_conv(editor, first)
    editor.finish()
    first, second = calls(net, aten.conv2d)
    assert torch.equal(constant(second.args[1]), kept)
    assert torch.equal(constant(first.args[1]), 2 * kept)
    assert torch.equal(model.conv.weight, kept)


def weights(net: GraphModule) -> list[str]:
    return [str(conv.args[1].target) for conv in calls(net, aten.conv2d)]


def test_a_new_constant_is_numbered_while_the_old_one_is_in_use(net: GraphModule) -> None:
    editor = Editor(net, "test", proven)
    replace_conv(editor, calls(net, aten.conv2d)[0])
    editor.finish()
    assert weights(net) == ["conv.weight_1", "conv.weight"]
    assert set(net.state_dict()) == {"conv.weight", "conv.weight_1", "conv.bias"}


def test_a_new_constant_takes_the_name_that_the_old_one_frees(net: GraphModule) -> None:
    for number in (0, 1):
        editor = Editor(net, "test", proven)
        replace_conv(editor, calls(net, aten.conv2d)[number])
        editor.finish()
    assert weights(net) == ["conv.weight", "conv.weight_2"]
    assert set(net.state_dict()) == {"conv.weight", "conv.weight_2", "conv.bias"}
    x = torch.randn(2, 3, 4, 4)
    graph_result = net(x)
    net.recompile()
    assert torch.equal(net(x), graph_result)


def test_a_refused_edit_does_not_cost_the_next_one_its_name() -> None:
    net = writable(nn.Conv2d(3, 3, 1), torch.randn(2, 3, 4, 4))
    verdicts: Iterator[Certificate] = iter([disproven(None), proven(None)])
    editor = Editor(net, "test", lambda edit: next(verdicts))
    replace_conv(editor, calls(net, aten.conv2d)[0], "weight")
    replace_conv(editor, calls(net, aten.conv2d)[0], "weight")
    editor.finish()
    assert weights(net) == ["weight"] and set(net.state_dict()) == {"weight", "bias"}


def test_a_constant_may_be_attached_below_a_new_path(net: GraphModule) -> None:
    editor = Editor(net, "test", proven)
    edit = replace_conv(editor, calls(net, aten.conv2d)[0], "folded.deep.weight")
    editor.finish()
    assert attribute(net, "folded.deep.weight").shape == (3, 3, 3, 3)
    assert edit.added[0].target == "folded.deep.weight"


def test_a_constant_is_rounded_once_and_kept_exact_for_the_certificate(net: GraphModule) -> None:
    exact: list[Tensor] = []

    def certify(edit: Edit) -> Certificate:
        exact.extend(edit.exact.values())
        return Certificate(0.0)

    conv = calls(net, aten.conv2d)[0]
    old = constant(conv.args[1])
    with (editor := Editor(net, "test", certify)).edit(Match(conv, (conv,), "third")) as edit:
        weight = editor.constant(old.double() / 3, torch.float32, "conv.weight")
        x, _, *rest = conv.args
        edit.replacements[conv] = editor.call(aten.conv2d.default, x, weight, *rest)
    assert torch.equal(exact[0], old.double() / 3)
    assert torch.equal(constant(weight), (old.double() / 3).float())
    assert tensor(weight).dtype == torch.float32


def test_new_nodes_know_where_they_come_from(net: GraphModule) -> None:
    conv, relu = calls(net, aten.conv2d)[0], calls(net, aten.relu)[0]
    editor = Editor(net, "fold-test", proven)
    with editor.edit(Match(relu, (conv, relu), "together")) as edit:
        inner = editor.call(aten.conv2d.default, *conv.args)
        edit.replacements[relu] = editor.call(aten.hardtanh.default, inner, 0.0, 1e9)
    inner, outer = edit.added
    assert (module_path(inner), module_path(outer)) == ("conv", "twice")
    assert inner.meta["nn_module_stack"] == conv.meta["nn_module_stack"]
    assert inner.meta["stack_trace"] == conv.meta["stack_trace"]
    assert outer.meta["stack_trace"] == relu.meta["stack_trace"]
    for node in edit.added:
        sources = node.meta["from_node"]
        assert [source.name for source in sources] == [conv.name, relu.name]
        assert {source.pass_name for source in sources} == {"passfx.fold-test"}


def test_an_item_is_one_result_of_an_operator_as_capture_writes_it() -> None:
    class Halves(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return x.relu().split_with_sizes([2, 1], 1)

    net = writable(nn.ReLU(), x := torch.randn(2, 3))
    (relu,) = calls(net, aten.relu)
    editor = Editor(net, "test", proven)
    with editor.edit(Match(relu, (relu,), "in parts")) as edit:
        whole = editor.call(aten.relu.default, relu.args[0])
        parts = editor.call(aten.split_with_sizes.default, whole, [2, 1], 1)
        items = [editor.item(parts, number) for number in range(2)]
        edit.replacements[relu] = editor.call(aten.cat.default, items, 1)
    assert [tensor(item).shape for item in items] == [(2, 2), (2, 1)]
    assert edit.added[2:4] == items and editor.rewrites[0].added[2:4] == ("getitem", "getitem_1")
    assert items[0].meta["from_node"][0].name == relu.name
    wanted = to_text(captured(Halves(), x).graph_module).splitlines()
    assert to_text(net).splitlines()[2:5] == wanted[2:5]
    assert torch.equal(net(x), x.relu())


def test_new_nodes_keep_dynamic_sizes() -> None:
    net = writable(nn.ReLU(), torch.randn(2, 3), dynamic_shapes={"input": {0: Dim.DYNAMIC}})
    (relu,) = calls(net, aten.relu)
    editor = Editor(net, "test", proven)
    with editor.edit(Match(relu, (relu,), "clamped")) as edit:
        edit.replacements[relu] = editor.call(aten.clamp.default, relu.args[0], 0.0)
    assert editor.modified
    batch, _ = tensor(edit.added[0]).shape
    assert isinstance(batch, torch.SymInt)


def test_what_a_branch_reads_is_not_detached(net: GraphModule) -> None:
    branch = GraphModule(nn.Module(), torch.fx.Graph())
    branch.register_buffer("table", torch.ones(2))
    branch.register_buffer("unread", torch.ones(2))
    branch.graph.output(branch.graph.get_attr("table"))
    net.add_module("branch", branch)
    Editor(net, "test", lambda edit: Certificate(None)).finish()
    assert list(dict(branch.named_buffers())) == ["table"]
