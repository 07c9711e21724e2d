"""What a graph says of the sizes of a form."""

import torch
from torch import nn
from torch.export import Dim

import passfx
from passfx.analysis.forms import channels
from passfx.capture.program import capture


def test_channels_that_the_tracer_fixed_are_a_number() -> None:
    """`Dim.AUTO` on the axis of the channels, which the weights fix."""
    norm, x = nn.BatchNorm1d(5).eval(), torch.randn(2, 5, 4)
    auto = ({1: Dim.AUTO},)
    (source,) = capture(norm, (x,), dynamic_shapes=auto).placeholders
    assert channels(source, 1) == 5
    assert torch.allclose(passfx.optimize(norm, (x,), dynamic_shapes=auto).module(x), norm(x))
