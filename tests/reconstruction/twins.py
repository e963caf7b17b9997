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


def scales(weight, bits, group):
    """The largest magnitude of each group of rows is half a step beyond the largest integer."""
    return np.abs(weight).reshape(-1, group, weight.shape[1]).max(1) / (2 ** (bits - 1) - 0.5)


def rounded(weight, scale, bits):
    # The largest magnitude is half-way between two integers: away from zero, whatever the last bit.
    return np.clip(np.rint(weight / scale * (1 + 2**-20)), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * scale


def sparse_gptq(weight, gram, kept, *, bits, group, damping=0.01):
    """A sweep with a given mask that rounds what it keeps; the scales of a group are fixed when it is reached."""
    w, upper = weight.copy(), np.linalg.cholesky(np.linalg.inv(damped(gram, damping))).T
    found = scales(weight, bits, len(w))
    every = []
    for i in range(len(w)):
        if i % group == 0:
            found = scales(w[i : i + group], bits, group)
            every.append(found[0])
        new = np.where(kept[i], rounded(w[i], found[0], bits), 0)
        w[i + 1 :] -= np.outer(upper[i, i + 1 :], (w[i] - new) / upper[i, i])
        w[i] = new
    return w, np.stack(every)


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
