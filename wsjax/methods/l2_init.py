"""L2-Init: the parameters are pulled back to where they were drawn.

Kumar, Marklund and Van Roy, "Maintaining Plasticity in Continual Learning via Regenerative Regularization"
(https://arxiv.org/abs/2308.11958).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import optax

from wsjax.checks import check_number
from wsjax.methods.leaves import check_params, chosen, map_chosen
from wsjax.methods.reinit import Where


class L2InitState(NamedTuple):
    """`anchor`: the parameters that are pulled to, like the params; None for leaves that are left alone."""

    anchor: Any


def l2_init(strength: Any, where: Where | None = None) -> optax.GradientTransformation:
    """Adds `strength * (params - anchor)`, the gradient of `strength / 2 * sum((params - anchor)^2)`.

    The anchor is what `init` was called with: built with the first network's parameters, it stays that network
    whatever the parameters are replaced by. `wsjax.anchored` is the start of a round that keeps it so.

    Kumar et al. write their loss with lambda * sum((params - anchor)^2), of which `strength` would be twice the lambda;
    their code, by which their numbers were made, has lambda / 2 there, and `strength` is its lambda.

    Where it stands in the chain decides what it is. First of all, it is part of the loss, as its authors have it:

        optax.chain(wsjax.l2_init(1e-3), optax.adam(1e-3))

    Behind what scales the gradient, it is decoupled from that, as AdamW's weight decay is: the learning rate times
    `strength * (params - anchor)` goes off the parameters.

        optax.chain(optax.scale_by_adam(), wsjax.l2_init(1e-3), optax.scale_by_learning_rate(1e-3))

    Args:
      strength: a number, 0 or more, or a traced scalar.
      where: chooses leaves by their path; None all. `wsjax.not_normalization` is the authors' choice.

    Returns:
      A transformation of the updates' own dtypes, whose update needs the params.

    Raises:
      TaskError: strength is no such number; in `update`, the params are missing or another network's.
    """
    check_number("l2_init: strength", strength, least=0)

    def init(params: Any) -> L2InitState:
        return L2InitState(chosen(params, where))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, L2InitState]:
        check_params("l2_init", params, state.anchor)

        def pulled(anchor: Any, update: Any, param: Any) -> Any:
            return (update + strength * (param - anchor)).astype(update.dtype)

        return map_chosen(pulled, state.anchor, updates, params), state

    return optax.GradientTransformation(init, update)
