"""The executor against eager torch: forward and gradient to all weights, ResNet50 at 224 px, batch 8.

    python benchmarks/executor_speed.py [--runs 7] [--batch 8] [--size 224]

The graph is torch.onnx.export's (its BatchNormalizations folded), eager torch runs the module it came from
in eval mode. Runs alternate in one process, at the same number of threads; medians are compared. Target
ratio: 1.0 or less.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Sequence

import torch

from amq_onnx.executor.interpreter import Executor


def seconds(run: Callable[[], Sequence[torch.Tensor]]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    from pytorchcv.models.resnet import resnet50

    torch.manual_seed(0)
    network = resnet50().eval()
    x = torch.randn(options.batch, 3, options.size, options.size)
    labels = torch.randint(0, 1000, (options.batch,))
    exported = torch.onnx.export(network, (x,), dynamo=True, verbose=False)
    assert exported is not None
    executor = Executor(exported.model_proto)
    weights = {
        name: value.clone().requires_grad_()
        for name, value in executor.initializers.items()
        if value.is_floating_point()
    }
    parameters = list(network.parameters())
    (image,), (score,) = executor.inputs, executor.outputs

    def with_executor() -> Sequence[torch.Tensor]:
        scores = executor.run({image: x, **weights})[score]
        loss = torch.nn.functional.cross_entropy(scores, labels)
        return torch.autograd.grad(loss, list(weights.values()), allow_unused=True)

    def with_torch() -> Sequence[torch.Tensor]:
        loss = torch.nn.functional.cross_entropy(network(x), labels)
        return torch.autograd.grad(loss, parameters)

    seconds(with_executor), seconds(with_torch)
    ours, theirs = [], []
    for _ in range(options.runs):
        ours.append(seconds(with_executor))
        theirs.append(seconds(with_torch))
    mine, eager = statistics.median(ours), statistics.median(theirs)
    print(
        f"threads {torch.get_num_threads()}, batch {options.batch}, {options.size} px: "
        f"executor {mine:.3f} s, eager {eager:.3f} s, ratio {mine / eager:.3f}"
    )


if __name__ == "__main__":
    main()
