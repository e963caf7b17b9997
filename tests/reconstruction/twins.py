"""The published algorithms in NumPy float64, one weight at a time, for comparison."""

import numpy as np


def damped(gram, damping):
    diagonal = np.diag(gram)
    mean = diagonal[diagonal > 0].mean()
    out = gram / mean
    out[np.diag_indices_from(out)] = np.where(diagonal > 0, diagonal / mean + damping, 1.0)
    return out


def error(change, gram):
    return np.einsum("io,ij,jo->o", change, gram, change)


def sparsegpt(weight, gram, *, removed=None, nm=None, mask=None, damping=0.01, block=128):
    """Frantar and Alistarh 2023, Algorithm 1: H^-1's upper Cholesky factor, then column after column."""
    w, dead = weight.copy(), np.diag(gram) == 0
    inverse = np.linalg.inv(damped(gram, damping))
    upper = np.linalg.cholesky(inverse).T  # inverse = upper.T @ upper
    n, outputs = w.shape
    kept = np.ones(w.shape, bool) if mask is None else mask.copy()
    for i in range(n):
        if removed is not None and i % block == 0:
            end = min(i + block, n)
            count = (2 * removed * end + n) // (2 * n) - (2 * removed * i + n) // (2 * n)
            score = np.where(dead[i:end, None], 0, np.abs(w[i:end]) / np.diag(upper)[i:end, None])
            order = np.lexsort((-np.arange(score.size), score.ravel()))  # least first; of equals the last index
            kept[i:end].reshape(-1)[order[:count]] = False
        if nm is not None and i % nm[1] == 0:
            score = np.where(
                dead[i : i + nm[1], None], 0, np.abs(w[i : i + nm[1]]) / np.diag(upper)[i : i + nm[1], None]
            )
            for o in range(outputs):
                order = np.lexsort((-np.arange(nm[1]), score[:, o]))
                kept[i + order[: nm[1] - nm[0]], o] = False
        err = np.where(kept[i], 0, w[i]) / upper[i, i]
        w[i:] -= np.outer(upper[i, i:], err)
    return no_worse(weight, np.where(kept, w, 0), kept, gram), kept


def no_worse(weight, repaired, mask, gram):
    plain = np.where(mask, weight, 0)
    return np.where(error(weight - repaired, gram) > error(weight - plain, gram), plain, repaired)


def least_squares(weight, gram, mask, *, damping=1e-4):
    system, out = damped(gram, damping), np.zeros_like(weight)
    for o in range(weight.shape[1]):
        s = mask[:, o]
        out[s, o] = np.linalg.solve(system[np.ix_(s, s)], system[s] @ weight[:, o])
    return out


def obs(weight, gram, *, removed=None, nm=None, damping=1e-4):
    """Frantar, Singh and Alistarh 2022, Algorithms 1 and 2: the inverse is inverted anew at every step."""
    system = damped(gram, damping)
    n, outputs = weight.shape
    steps = n if nm is None else n // nm[1] * (nm[1] - nm[0])
    losses, orders, traces = np.zeros((outputs, steps)), [], []
    for o in range(outputs):
        w, gone, trace = weight[:, o].copy(), [], [weight[:, o].copy()]
        for step in range(steps):
            left = [i for i in range(n) if i not in gone]
            inverse = np.linalg.inv(system[np.ix_(left, left)])
            cost = w[left] ** 2 / np.diag(inverse)
            if nm is not None:
                full = [sum(g // nm[1] == i // nm[1] for g in gone) == nm[1] - nm[0] for i in left]
                cost = np.where(full, np.inf, cost)
            k = int(np.argmin(cost))
            losses[o, step] = cost[k]
            w[left] -= inverse[:, k] * w[left[k]] / inverse[k, k]
            w[left[k]] = 0.0
            gone.append(left[k])
            trace.append(w.copy())
        orders.append(gone)
        traces.append(trace)
    goes = np.zeros(losses.shape, bool)
    if nm is None:
        goes.ravel()[np.argsort(losses.ravel(), kind="stable")[:removed]] = True
    else:
        goes[:] = True
    counts = goes.sum(1)
    return np.stack([traces[o][counts[o]] for o in range(outputs)], 1)


def alps(weight, gram, *, sparsity=None, nm=None, damping=0.01, steps=300):
    """Meng et al. 2024, Algorithm 1: the mask, with a linear solve in every step."""
    system = damped(gram, damping)
    norms = np.sqrt(np.diag(system))[:, None]
    system = system / (norms * norms.T)
    dense = weight * norms
    n, outputs = weight.shape

    def largest(x):
        if nm is None:
            kept = x.size - int(sparsity * x.size + 0.5)
            mask = np.zeros(x.size, bool)
            mask[np.argsort(-np.abs(x).ravel(), kind="stable")[:kept]] = True
            return mask.reshape(x.shape)
        groups = np.abs(x).reshape(-1, nm[1], outputs)
        return (np.argsort(np.argsort(-groups, axis=1, kind="stable"), axis=1) < nm[0]).reshape(x.shape)

    start = largest(dense)
    mask, sparse, multipliers, penalty, exploring = start, np.where(start, dense, 0), 0 * dense, 0.1, False
    for step in range(steps):
        free = np.linalg.solve(system + penalty * np.eye(n), system @ dense - multipliers + penalty * sparse)
        moved = free + multipliers / penalty
        sparse = np.where(largest(moved), moved, 0)
        multipliers = multipliers + penalty * (free - sparse)
        if step % 3 < 2:
            continue
        changed = (largest(moved) != mask).sum()
        exploring |= changed > 0.005 * start.sum()
        if not exploring:
            penalty, sparse, multipliers, mask = penalty / 5, np.where(start, dense, 0), 0 * dense, start
            continue
        mask = largest(moved)
        penalty *= 1.3 if changed > 0.1 * start.sum() else 1.2 if changed > 0.005 * start.sum() else 1.1
        if changed == 0 or (step >= 29 and changed < 3e-4 * start.sum()):
            break
    return mask
