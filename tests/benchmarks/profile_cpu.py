"""Measure what the "cpu" profile of passfx/analysis/cost.py says, under ONNX Runtime.

    python tests/benchmarks/profile_cpu.py [--threads 2]

A chain of one operator is timed at two lengths; the difference is the time of the operators alone.
"""

import argparse
import statistics
import time

import numpy
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

SHORT, LONG = 1, 9


def seconds(
    threads: int, shape: list[int], attributes: list[dict[str, object]], kind: str
) -> float:
    """The median time of a chain of operators; a convolution has its kernel in "weight"."""
    nodes, weights = [], []
    for number, given in enumerate(attributes):
        given = dict(given)
        inputs = ["x" if number == 0 else f"t{number}"]
        if "weight" in given:
            values = numpy.random.randn(*given.pop("weight")).astype("f4") * 0.01
            weights.append(numpy_helper.from_array(values, f"w{number}"))
            inputs.append(f"w{number}")
        result = "y" if number == len(attributes) - 1 else f"t{number + 1}"
        nodes.append(helper.make_node(kind, inputs, [result], **given))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy"]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    x, times = numpy.random.randn(*shape).astype("f4"), []
    for _ in range(30):
        started = time.perf_counter()
        session.run(None, {"x": x})
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def each(threads: int, shape: list[int], given: dict[str, object], kind: str) -> float:
    """The time of one operator of a chain."""
    times = [seconds(threads, shape, [given] * count, kind) for count in (SHORT, LONG)]
    return (times[1] - times[0]) / (LONG - SHORT)


def main() -> None:
    """Print the measured figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    threads = parser.parse_args().threads
    print(f"relu of 512 elements: {each(threads, [1, 8, 8, 8], {}, 'Relu') * 1e6:.1f} µs")
    shape = [1, 64, 224, 224]
    moved = 2 * 4 * numpy.prod(shape)
    print(f"relu of 3 M elements: {moved / each(threads, shape, {}, 'Relu') / 1e9:.1f} GB/s")
    for channels, kernel, size, groups in (
        *((64, 3, 56, 1), (256, 3, 14, 1), (512, 3, 7, 1), (64, 1, 56, 1), (256, 1, 14, 1)),
        *((32, 3, 112, 32), (64, 3, 56, 64), (256, 3, 14, 256)),
    ):
        weight = (channels, channels // groups, kernel, kernel)
        given = {"weight": weight, "group": groups, "pads": [kernel // 2] * 4}
        took = each(threads, [1, channels, size, size], given, "Conv")
        rate = numpy.prod(weight) * size**2 / took / 1e9
        print(
            f"conv {channels} channels {kernel}x{kernel} {size}² groups {groups}: {rate:.1f} GMAC/s"
        )


if __name__ == "__main__":
    main()
