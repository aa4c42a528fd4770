"""Stochastic rounding to 16 bits: up or down, with the odds that make the mean exact.

An update below half the distance of two neighbours is lost to rounding to the nearest; rounded
stochastically it is kept on average (arXiv 1502.02551; for bfloat16 training arXiv 2010.06192).

The random bits are a function of a step's seed, the place of the tensor in its bucket and the place
of the entry in the tensor, so every engine draws the same, on any number of threads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SMALL = (torch.bfloat16, torch.float16)

# The mixing function is "lowbias32" of https://nullprogram.com/blog/2018/07/31/.
C_SOURCE = """
static inline uint32_t mix(uint32_t x)
{
    x = (x ^ x >> 16) * 0x7feb352du;
    x = (x ^ x >> 15) * 0x846ca68bu;
    return x ^ x >> 16;
}
static inline uint32_t key_of(double seed, int64_t tensor)
{
    const uint64_t bits = (uint64_t)seed;
    return mix((uint32_t)bits ^ mix((uint32_t)(bits >> 32) ^ mix((uint32_t)tensor)));
}
/* x plus random bits below the last that is kept, and then cut off there. */
static inline float stochastic_bf16(float x, uint32_t key, int64_t entry)
{
    uint32_t bits;
    memcpy(&bits, &x, 4);
    const uint32_t kept = (bits + (mix((uint32_t)entry ^ key) >> 16)) & 0xffff0000u;
    float y;
    memcpy(&y, &kept, 4);
    return x - x == 0 ? y : x;
}
/* Below 2^-14 the neighbours of a float16 stay 2^-24 apart; above, 2^-10 of the power of two. */
static inline float stochastic_f16(float x, uint32_t key, int64_t entry)
{
    uint32_t bits;
    memcpy(&bits, &x, 4);
    bits &= 0x7f800000u;
    float power;
    memcpy(&power, &bits, 4);
    const float apart = (power < 0x1p-14f ? 0x1p-14f : power) * 0x1p-10f;
    const float noise = (float)(mix((uint32_t)entry ^ key) >> 8) * 0x1p-24f;
    const float y = floorf(x / apart + noise) * apart;
    return x - x == 0 ? y : x;
}
"""


def stochastic(x: Tensor, dtype: torch.dtype, seed: int, tensor: int) -> Tensor:
    """`x`, of float32, rounded to what `dtype` (bfloat16 or float16) can hold; still float32."""
    entry = torch.arange(x.numel(), device=x.device)
    key = _mix((seed & _ALL) ^ _mix((seed >> 32) ^ _mix(tensor)))
    # Entries are counted in the order of memory, as the compiled engines see them.
    noise = torch.empty_like(x, dtype=torch.int64)
    noise.as_strided((x.numel(),), (1,)).copy_(_mix((entry & _ALL) ^ key))
    if dtype is torch.bfloat16:
        bits = (x.view(torch.int32).to(torch.int64) + (noise >> 16)) & ~0xFFFF
        y = bits.to(torch.int32).view(torch.float32)
    else:
        power = (x.view(torch.int32) & 0x7F800000).view(torch.float32)
        apart = power.clamp(min=2.0**-14) * 2.0**-10
        y = torch.floor(x / apart + (noise >> 8) * 2.0**-24) * apart
    return torch.where(x.isfinite(), y, x)


_ALL = 0xFFFFFFFF


def _mix(x: Any) -> Any:
    """Of an int or a tensor of them, in 32 bits."""
    x = (x ^ (x >> 16)) * 0x7FEB352D & _ALL
    x = (x ^ (x >> 15)) * 0x846CA68B & _ALL
    return x ^ (x >> 16)
