"""Stochastic rounding to bf16: small updates of weights count in the mean, where rounding to nearest loses them."""

import hashlib

import torch
from torch import Tensor

_LOW_BITS = 16
"""Bits of a float32 that bfloat16, which has the same exponent, does not have."""


def rounding_generator(generator: torch.Generator, seed: int, update: int, parameter: int) -> torch.Generator:
    """``generator``, set to the draws of one parameter in one update of a run with ``seed``.

    They depend on these three numbers and on the kind of device, and on nothing that was drawn before; so a run that
    goes on draws what it would have drawn, and so do all processes of a run.
    """
    digest = hashlib.blake2b(f"rounding {seed} {update} {parameter}".encode(), digest_size=8).digest()
    return generator.manual_seed(int.from_bytes(digest, "little") >> 1)


def round_into(weights: Tensor, exact: Tensor, generator: torch.Generator) -> None:
    """Put ``exact`` (fp32) into ``weights`` (bf16), rounded to one of its two neighbours, more often to the nearer one.

    The chance of a neighbour is its nearness, so that the mean over the draws is ``exact`` (Gupta et al. 2015, section
    3.1). A random number is added below the last bit that is kept, and what lies below it is cut off. What is not
    finite stays so. ``exact`` is overwritten.
    """
    draws = torch.randint(
        1 << _LOW_BITS, exact.shape, dtype=torch.int32, device=exact.device, generator=generator
    ).mul_(exact.isfinite())  # added to a NaN, they could carry into its sign and make it a zero
    bits = exact.view(torch.int32)
    bits.add_(draws).bitwise_and_(-1 << _LOW_BITS)
    weights.copy_(exact)
