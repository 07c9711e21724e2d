"""Cost: multiply-accumulates against torch's own counter, parameters, bytes, operator names."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from models.pass_layer import PassCNNAdd
from passfx.analysis.cost import GraphCost, graph_cost
from passfx.capture.program import capture
from tests.helpers import captured

BATCH = {0: Dim.DYNAMIC}


class Function(nn.Module):
    def __init__(self, body: Callable[..., Tensor]) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        return self.body(x, y, z)


def cost(model: nn.Module, *args: Tensor) -> GraphCost:
    return graph_cost(captured(model, *args).graph_module)


def flops(model: nn.Module, *args: Tensor) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(*args)
    return counter.get_total_flops()


@settings(deadline=None, max_examples=10)
@given(
    dims=st.integers(1, 3),
    groups=st.sampled_from([1, 2, 4]),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    padding=st.integers(0, 2),
    size=st.integers(5, 9),
    transposed=st.booleans(),
    bias=st.booleans(),
)
def test_convolutions(
    dims: int, groups: int, kernel: int, stride: int, dilation: int, padding: int, size: int,
    transposed: bool, bias: bool,
) -> None:  # fmt: skip
    name = f"Conv{'Transpose' if transposed else ''}{dims}d"
    layer = getattr(nn, name)(
        4, 8, kernel, stride, padding, dilation=dilation, groups=groups, bias=bias
    )
    x = torch.randn(2, 4, *range(size, size + dims))
    assert 2 * cost(layer, x).macs == flops(layer, x)


def test_a_convolution_by_hand() -> None:
    layer = nn.Conv2d(6, 8, (3, 5), stride=(2, 1), padding=(1, 2), groups=2)
    # 2 images · 8 channels · 4×9 positions, each of 3 channels · 3×5 taps
    assert cost(layer, torch.randn(2, 6, 8, 9)).macs == 2 * 8 * 4 * 9 * 3 * 3 * 5


@pytest.mark.parametrize(
    "body",
    [
        lambda x, y, z: F.linear(x, z),
        lambda x, y, z: x @ y.mT,
        lambda x, y, z: x[0] @ z.T,
        lambda x, y, z: torch.bmm(x, y.mT),
        lambda x, y, z: torch.addmm(z[:, 0], x[0], z.T),
        lambda x, y, z: torch.baddbmm(x[:, :, :1], x, y.mT),
        lambda x, y, z: torch.einsum("bij,bkj->bik", x, y),
        lambda x, y, z: torch.einsum("b i j, b k j -> b i k", x, y),
        lambda x, y, z: torch.einsum("...j,kj->...k", x, z),
        lambda x, y, z: torch.einsum("j...,kj", x.mT[0], z),
        lambda x, y, z: torch.einsum("bij,bkj", x, y),
    ],
)
def test_products(body: Callable[..., Tensor]) -> None:
    inputs = torch.randn(3, 4, 6), torch.randn(3, 5, 6), torch.randn(7, 6)
    model = Function(body)
    assert 2 * cost(model, *inputs).macs == flops(model, *inputs) > 0


@pytest.mark.parametrize(
    ("body", "macs"),
    [
        (lambda x, y, z: torch.mv(z, x[0, 0]), 7 * 6),
        (lambda x, y, z: torch.dot(z[0], x[0, 0]), 6),
        (lambda x, y, z: x @ z[0], 3 * 4 * 6),
        (lambda x, y, z: x[0, 0] @ y[0].mT, 5 * 6),
        (lambda x, y, z: torch.einsum("ij,ij->", z, z), 7 * 6),
        (lambda x, y, z: torch.einsum("bij->bji", x), 0),
    ],
)
def test_products_that_torch_does_not_count(body: Callable[..., Tensor], macs: int) -> None:
    inputs = torch.randn(3, 4, 6), torch.randn(3, 5, 6), torch.randn(7, 6)
    assert cost(Function(body), *inputs).macs == macs


def test_attention() -> None:
    def body(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, y, z)

    inputs = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8), torch.randn(2, 3, 7, 4)
    model = Function(body)
    assert cost(model, *inputs).macs == 2 * 3 * 5 * 7 * (8 + 4)
    assert 2 * cost(model, *inputs).macs == flops(model, *inputs)


def test_elementwise_work_norms_and_pools_cost_no_products() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.AvgPool2d(2), nn.LayerNorm([3, 4, 4]))
    assert cost(model, torch.randn(1, 3, 8, 8)).macs == 0


def test_resnet18_at_224() -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model("resnet18")
    found = cost(model, torch.randn(1, 3, 224, 224))
    assert found.macs == 1_814_073_344
    parameters = sum(item.numel() for item in model.parameters())
    statistics = sum(item.numel() for item in model.buffers() if item.is_floating_point())
    assert found.params == parameters + statistics
    assert found.weight_bytes == 4 * found.params
    assert found.ops == {
        "conv2d": 20, "batch_norm": 20, "relu": 17, "add": 8, "max_pool2d": 1,
        "adaptive_avg_pool2d": 1, "reshape": 1, "linear": 1,
    }  # fmt: skip
    assert found.nodes == 69
    assert list(found.ops.values()) == sorted(found.ops.values(), reverse=True)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_a_batch_that_varies_counts_as_one(batch: int) -> None:
    """The tracer takes 2 samples for 1; other sizes count as those of the example."""
    layer = nn.Conv2d(3, 4, 3)
    shapes = {"input": {0: Dim.DYNAMIC, 2: Dim.DYNAMIC}}
    found = capture(layer, (torch.randn(batch, 3, 8, 9),), dynamic_shapes=shapes)
    assert 2 * graph_cost(found.graph_module).macs == flops(layer, torch.randn(1, 3, 8, 9))


def test_products_of_a_batch_that_varies_count_as_of_one() -> None:
    def body(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        x = torch.einsum("bij,bjk->bik", x, y) @ z
        return F.scaled_dot_product_attention(x, x, z)

    inputs = [torch.randn(3, 4, 4) for _ in range(3)]
    shapes = dict.fromkeys("xyz", BATCH)
    found = graph_cost(capture(Function(body), tuple(inputs), dynamic_shapes=shapes).graph_module)
    assert found.macs == cost(Function(body), *(item[:1] for item in inputs)).macs == 4 * 4**3


def test_names_are_those_of_the_packets() -> None:
    def body(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        return F.batch_norm(x.relu_().to(torch.float64), None, None, training=True).view(-1)

    found = cost(Function(body), torch.randn(2, 3, 4), torch.randn(1), torch.randn(1))
    assert {"relu", "to", "batch_norm"} <= set(found.ops)
    assert not any(name.startswith("_") or name.endswith("_") for name in found.ops)


def test_tied_weights_are_counted_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(10, 4)
            self.head = nn.Linear(4, 10, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.embedding(x))

    found = cost(Tied(), torch.tensor([[1, 2]]))
    assert (found.params, found.weight_bytes) == (40, 160)


def test_a_layer_that_is_called_twice_is_counted_once() -> None:
    layer = nn.Linear(4, 4)
    found = cost(nn.Sequential(layer, nn.ReLU(), layer), torch.randn(1, 4))
    assert (found.params, found.macs) == (20, 32)


def test_parts_of_one_storage_are_counted_each() -> None:
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("left", torch.randn(10)[:6])
            self.register_buffer("right", self.left[2:])

        def forward(self, x: Tensor) -> Tensor:
            return x * self.left.sum() + self.right.sum()

    found = cost(Parts(), torch.randn(3))
    assert (found.params, found.weight_bytes) == (10, 40)


def test_integers_are_bytes_but_no_parameters() -> None:
    class Indices(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("order", torch.tensor([2, 0, 1]))

        def forward(self, x: Tensor) -> Tensor:
            return x[self.order]

    found = cost(Indices(), torch.randn(3))
    assert (found.params, found.weight_bytes) == (0, 24)


def test_half_precision_weights_take_half_the_bytes() -> None:
    found = cost(PassCNNAdd().half(), torch.randn(1, 3, 4, 4).half())
    assert found.weight_bytes == 2 * found.params
