# SPDX-License-Identifier: Apache-2.0
"""SparseGPT for one matrix: prune columns left to right, push each error into the columns still to come.

Minimises ``|| (W - W') X^T ||_F`` over the mask and the kept weights, given H = X^T X
(Frantar & Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot", 2023).
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparsecore.prune.masks import NM, nm_mask, unstructured_mask


def inverse_factor(hessian: Tensor, damp: float) -> tuple[Tensor, Tensor]:
    """Upper Cholesky factor U of ``(H + damp * mean(diag H) I)^-1 = U^T U``, and the dead inputs.

    Args:
        hessian: float32 [k, k], ``X^T X``; not changed.
        damp: first damping tried; multiplied by 10 until the factorisation exists.

    Returns:
        U float32 [k, k] and bool [k], True where an input is always zero.

    Raises:
        ValueError: when ``hessian`` holds NaN or infinity.
    """
    if not torch.isfinite(hessian).all():
        raise ValueError("hessian: not finite; the calibration activations overflow float32")
    h = hessian.clone()
    diag = h.diagonal()
    dead = diag == 0
    diag[dead] = 1.0
    mean = diag.mean().item()
    while True:
        diag += damp * mean
        lower, info = torch.linalg.cholesky_ex(h)
        if info == 0:
            upper, info = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
        if info == 0:
            return upper, dead
        damp *= 10


def sparsegpt_matrix_(
    weight: Tensor, upper: Tensor, dead: Tensor, sparsity: float | NM, *, block: int = 128
) -> Tensor:
    """Prune one weight in place.

    Args:
        weight: float32 [n, k], overwritten with the pruned and compensated weights.
        upper, dead: from :func:`inverse_factor` of the same k inputs.
        sparsity: fraction of zeros, met within every ``block`` columns over all rows, or n:m.
        block: columns whose updates to the later columns are applied together, as one matmul.

    Returns:
        ``weight``.
    """
    weight[:, dead] = 0.0
    wt = weight.t().contiguous()  # [k, n]: a column of W is contiguous
    k = wt.shape[0]
    if isinstance(sparsity, NM):
        if k % sparsity.m:
            raise ValueError(f"weight: {k} columns are not a multiple of m = {sparsity.m}")
        block = max(sparsity.m, block // sparsity.m * sparsity.m)
    diag = upper.diagonal()
    for begin in range(0, k, block):
        end = min(begin + block, k)
        w, u = wt[begin:end], upper[begin:end, begin:end]
        errors = torch.empty_like(w)
        if not isinstance(sparsity, NM):
            scores = (w / diag[begin:end, None]).square_()
            drop = ~unstructured_mask(scores, sparsity)
        for i in range(end - begin):
            if isinstance(sparsity, NM) and i % sparsity.m == 0:
                group = slice(i, i + sparsity.m)
                scores = (w[group] / diag[begin + i : begin + i + sparsity.m, None]).square_()
                drop_group = ~nm_mask(scores.t(), *sparsity).t()
            gone = drop_group[i % sparsity.m] if isinstance(sparsity, NM) else drop[i]
            errors[i] = w[i] * gone / u[i, i]
            # The column's own factor is included: it turns w[i] into w[i] - errors[i] * u[i, i].
            w[i:].addr_(u[i, i:], errors[i], alpha=-1.0)
            w[i].masked_fill_(gone, 0.0)
        if end < k:
            wt[end:].addmm_(upper[begin:end, end:].t(), errors, alpha=-1.0)
    return weight.copy_(wt.t())


def refit_matrix_(weight: Tensor, target: Tensor, hessian: Tensor, *, damp: float, steps: int) -> Tensor:
    """Least squares on a fixed support, by preconditioned conjugate gradients on all rows at once.

    Minimises ``tr((W - T)(H + damp * mean(diag H) I)(W - T)^T)`` over the nonzeros of W, each row its own
    problem with its own step sizes; the support never grows
    (Meng et al., "ALPS: Improved Optimization for Highly Sparse One-Shot Pruning", 2024, section 3.3).

    Args:
        weight: float32 [n, k], the start, overwritten.
        target: float32 [n, k], the dense weights.
        hessian: float32 [k, k], ``X^T X``.
        steps: iterations; one costs ``2 n k^2`` flops.

    Returns:
        ``weight``.
    """
    support = weight != 0
    diag = hessian.diagonal()
    ridge = damp * diag.mean().item()
    precondition = support / (diag + ridge)

    def product(v: Tensor) -> Tensor:
        return torch.addmm(v, v, hessian, beta=ridge) if ridge else v @ hessian

    tiny = torch.finfo(torch.float32).tiny
    residual = product(target - weight).mul_(support)
    z = residual * precondition
    direction = z.clone()
    rho = (residual * z).sum(1, keepdim=True)
    for _ in range(steps):
        image = product(direction)
        step = rho / (direction * image).sum(1, keepdim=True).clamp_min_(tiny)
        weight.addcmul_(step, direction)
        residual.addcmul_(step, image.mul_(support), value=-1.0)
        torch.mul(residual, precondition, out=z)
        rho_next = (residual * z).sum(1, keepdim=True)
        direction = torch.addcmul(z, rho_next / rho.clamp_min(tiny), direction)
        rho = rho_next
    return weight
