"""The attention sink, and what it asks of an operator.

A token that says little is a good place to leave attention that has nothing to read. Trained transformers use the first
one (arXiv 2309.17453): some layer writes a state of enormous norm there (massive activations, arXiv 2402.17762), nearly
the same whatever the token, and later layers attend to it. In SmolLM2-135M layer 11 lifts its root mean square from 6
to 1,000; the other tokens have 6.

An operator that replaces the layer that *writes* the sink must write it, too, or the layers after it attend to
nothing. But a squared error that counts it counts little else. So it is not learned: the mean of the teacher's states
there is stored with the operator (``Operator.set_sink``), the loss leaves the first position out, and weighs each other
token by one over its squared norm, since the next layer's norm divides by it.
"""

from dataclasses import dataclass

from torch import Tensor

MASSIVE = 30.0  # times the median norm of the others: in SmolLM2-135M layer 2 makes 10 (no sink yet), layer 11 170


@dataclass(frozen=True)
class Sink:
    """The states of the first tokens at both ends of a span.

    Attributes:
        before, after: their root mean square, over the median root mean square of the other tokens there.
        state: ``(D,)``, their mean at the end of the span.
        spread: root mean square distance from that mean, over its norm: 0 if all first tokens have one state.
    """

    before: float
    after: float
    state: Tensor
    spread: float

    @property
    def present(self) -> bool:
        """The state is massive after the span."""
        return self.after > MASSIVE

    @property
    def written(self) -> bool:
        """The span writes it: it is massive after the span, and was not before."""
        return self.present and self.before < MASSIVE


def find_sink(x0: Tensor, x1: Tensor) -> Sink:
    """Compare the first token with the others in states that enter and leave a span, ``(B, T, D)``, B sequences."""

    def prominence(x: Tensor) -> float:
        rms = x.float().square().mean(-1).sqrt()
        return (rms[:, 0].median() / rms[:, 1:].median().clamp(min=1e-12)).item()

    first = x1[:, 0].float()
    state = first.mean(0)
    spread = ((first - state).square().sum(-1).mean().sqrt() / state.norm().clamp(min=1e-12)).item()
    return Sink(prominence(x0), prominence(x1), state, spread)
