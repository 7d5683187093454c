"""Other tools' draws of v'Hv on one layer of a torch module, timed in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from peer_packages import PeerEnvironment
from torch import Tensor, nn

Draw = Callable[[], float]


@dataclass(frozen=True)
class Peer:
    """Another tool.

    start: given a module in which the named layer's weight alone requires a gradient, images and labels, a
    function whose every call returns the mean of `together` draws of v'Hv. probes: how many draws a pilot has.
    """

    name: str
    requirements: tuple[str, ...]
    start: Callable[[nn.Module, str, Tensor, Tensor], Draw]
    probes: int
    together: int = 1


@dataclass
class Pilot:
    """The draws of one tool on one layer. setup: seconds before the first; seconds: of all of them."""

    setup: float = 0.0
    seconds: float = 0.0
    draws: list[float] = field(default_factory=list)
    probes: int = 0

    @property
    def mean(self) -> float:
        """The trace by these draws."""
        return statistics.fmean(self.draws)

    @property
    def seconds_per_probe(self) -> float:
        """Seconds of a draw, in the mean."""
        return self.seconds / self.probes


class Pilots:
    """Pilots of the tools that can be installed and work, by tool and layer; why the others can't, by tool."""

    def __init__(self, peers: Sequence[Peer]) -> None:
        self.found: dict[str, dict[str, Pilot]] = {}
        self.failed: dict[str, str] = {}
        environment = PeerEnvironment("curvature")
        environment.share()
        for peer in peers:
            reason = environment.install(peer.requirements, dependencies=False)
            if reason is None:
                self.found[peer.name] = {}
            else:
                self.failed[peer.name] = reason

    def draw(self, peers: Sequence[Peer], network: nn.Module, layer: str, images: Tensor, labels: Tensor) -> None:
        """Draw on one layer with each tool, one call of each at a time, so that a noisy machine slows all alike."""
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name == layer)
        started: dict[str, tuple[Peer, Draw, Pilot]] = {}
        for peer in peers:
            if peer.name in self.failed:
                continue
            start = time.perf_counter()
            try:
                draw = peer.start(network, layer, images, labels)
            except Exception as error:  # whatever a tool of others raises is its result
                self._fail(peer, error)
                continue
            started[peer.name] = (peer, draw, Pilot(setup=time.perf_counter() - start))
        while started:
            for peer, draw, pilot in list(started.values()):
                start = time.perf_counter()
                try:
                    pilot.draws.append(draw())
                except Exception as error:
                    self._fail(peer, error)
                    del started[peer.name]
                    continue
                pilot.seconds += time.perf_counter() - start
                pilot.probes += peer.together
                if pilot.probes >= peer.probes:
                    self.found[peer.name][layer] = pilot
                    del started[peer.name]
        # PyHessian leaves the gradient with its graph in .grad, which would hold all activations for ever.
        for parameter in network.parameters():
            parameter.grad = None

    def _fail(self, peer: Peer, error: Exception) -> None:
        line = (str(error).strip().splitlines() or [""])[0]
        self.failed[peer.name] = f"{type(error).__name__}: {line}"
        self.found.pop(peer.name, None)


def _pyhessian(network: nn.Module, layer: str, images: Tensor, labels: Tensor) -> Draw:
    """One batch, so that the gradient's graph is kept and a draw costs a backward pass alone."""
    import pyhessian

    operator = pyhessian.hessian(network, nn.CrossEntropyLoss(), data=(images, labels), cuda=False)
    return lambda: float(operator.trace(maxIter=1)[0])


def _eigenthings(network: nn.Module, layer: str, images: Tensor, labels: Tensor) -> Draw:
    from hessian_eigenthings import HessianOperator, hutchinson, supervised_loss

    operator = HessianOperator(network, [(images, labels)], supervised_loss(nn.CrossEntropyLoss()))
    return lambda: float(hutchinson(operator, num_samples=1).estimate)


_CURVLINOPS_TOGETHER = 4


def _curvlinops(network: nn.Module, layer: str, images: Tensor, labels: Tensor) -> Draw:
    """Several vectors at once, its fastest way, and without its check for determinism, which costs products too."""
    from curvlinops import HessianLinearOperator, hutchinson_trace

    weight = dict(network.named_parameters())[layer]
    loss = nn.CrossEntropyLoss()
    operator = HessianLinearOperator(network, loss, [weight], [(images, labels)], check_deterministic=False)
    return lambda: float(hutchinson_trace(operator, _CURVLINOPS_TOGETHER))


PYHESSIAN = Peer("PyHessian 0.1", ("pyhessian==0.1",), _pyhessian, probes=20)
OTHERS = (
    Peer("hessian-eigenthings 1.0.0a5", ("hessian-eigenthings==1.0.0a5", "tqdm"), _eigenthings, probes=8),
    Peer(
        "curvlinops 3.0.1",
        (
            *("curvlinops-for-pytorch==3.0.1", "backpack-for-pytorch", "einops", "einconv", "linear_operator"),
            *("opt-einsum", "jaxtyping", "wadler-lindig", "mpmath", "tqdm", "unfoldNd"),
        ),
        _curvlinops,
        probes=8,
        together=_CURVLINOPS_TOGETHER,
    ),
)
