# SPDX-License-Identifier: Apache-2.0
"""Mean field of the depth CRF: softmax of logits, pulled towards the neighbours that look alike.

``mean_field(logits, kernel, weight, iterations)`` is the one entry. There are three forms:

- ``c++`` on the CPU and ``cuda`` on a GPU: registered operators (:mod:`bevnext_core.ops.crf.operator`), compiled on
  first use. The product with |a - b| is two running sums over the bins, messages are exchanged only where the
  kernel is not 0, and the iterations run in the cache or in registers. Deterministic, the gradients too.
- ``plain``: the definition in plain PyTorch, for any device. It is the oracle of the others, and what is used
  (with one line in the log) where there is no compiler.

``mean_field_form(device)`` tells which one is in use. The environment variable ``BEVNEXT_CRF`` decides: ``auto``
(as above), ``plain``, or ``native`` (an error rather than the plain form).
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from bevnext_core.ops.crf.operator import FORMS, MAX_CUDA_BINS

WINDOW = [(dy, dx) for dy in range(3) for dx in range(3)]


mean_field_form = FORMS.of
"""The form that :func:`mean_field` takes on a device: ``c++``, ``cuda`` or ``plain``."""


def mean_field(logits: Tensor, kernel: Tensor, weight: Tensor, iterations: int) -> Tensor:
    """``iterations`` of ``q_a = softmax_a(logits_a - weight * sum_b |a - b| m_b)``, m the messages of the window.

    Args:
        logits: ``[M, D, h, w]``, float32 or float64; the first q is their softmax.
        kernel: ``[M, 9, h, w]``, what a patch's messages from its 3x3 window (row by row, the patch itself in the
            middle) are multiplied with; takes no gradient. Nothing comes from outside the image.
        weight: ``[1]``.

    Returns:
        ``[M, D, h, w]``, sums to one over D; contiguous.
    """
    form = FORMS.on(logits.device.type)
    if form == "plain" or (form == "cuda" and logits.shape[1] > MAX_CUDA_BINS):
        return mean_field_plain(logits, kernel, weight, iterations)
    return torch.ops.bevnext.crf(logits, kernel, weight, iterations)


def mean_field_plain(logits: Tensor, kernel: Tensor, weight: Tensor, iterations: int) -> Tensor:
    """:func:`mean_field` in plain PyTorch, whatever form is in use; takes the same arguments."""
    bins = torch.arange(logits.shape[1], dtype=logits.dtype, device=logits.device)
    compatibility = (bins[:, None] - bins[None, :]).abs()
    q = logits.softmax(1)
    for _ in range(iterations):
        message = weight * _gather_window(q, kernel)
        q = (logits - torch.einsum("ab,mbhw->mahw", compatibility, message)).softmax(1)
    return q.contiguous()


def _gather_window(q: Tensor, kernel: Tensor) -> Tensor:
    height, width = q.shape[-2:]
    padded = F.pad(q, (1, 1, 1, 1))
    messages = (
        kernel[:, index : index + 1] * padded[..., dy : dy + height, dx : dx + width]
        for index, (dy, dx) in enumerate(WINDOW)
    )
    return functools.reduce(torch.add, messages)
