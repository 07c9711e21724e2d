"""A graph module holds tensors of its own, which need no gradient."""

import torch
from torch import Tensor, nn

from passfx.capture.weights import hold_tensors


class Tied(nn.Module):
    """One parameter under two names, two views of one memory, and a plain attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight
        whole = torch.randn(8)
        self.register_buffer("left", whole[:5])
        self.register_buffer("right", whole[5:], persistent=False)
        self.plain = whole[2:4]


def storage(item: Tensor) -> int:
    return item.untyped_storage().data_ptr()


def test_copies_share_memory_where_it_was_shared() -> None:
    model, other = Tied(), Tied()
    other.load_state_dict(model.state_dict())
    weight, left = model.first.weight, model.left
    hold_tensors(model, copied=True)
    assert storage(model.first.weight) != storage(weight)
    assert storage(model.left) != storage(left)
    assert model.first.weight is model.second.weight
    assert storage(model.left) == storage(model.right) == storage(model.plain)
    assert model.state_dict().keys() == other.state_dict().keys()
    assert all(map(torch.equal, model.state_dict().values(), other.state_dict().values()))
    assert not any(item.requires_grad for item in model.parameters())


def test_held_tensors_are_others_in_the_same_memory() -> None:
    model = Tied()
    weight, names = model.first.weight, dict(model.named_parameters()).keys()
    hold_tensors(model, copied=False)
    assert storage(model.first.weight) == storage(weight)
    assert model.first.weight is model.second.weight is not weight
    assert weight.requires_grad and not model.first.weight.requires_grad
    assert dict(model.named_parameters()).keys() == names
    model.half()
    assert weight.dtype == torch.float32
