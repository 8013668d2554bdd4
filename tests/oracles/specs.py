"""Specifications of algorithms in NumPy, one function each, that share no code with funcopt.

Each was run against its reference implementation before it came here; where no package has an algorithm right, it is
the oracle. `p` is the parameter before the update, `g` the gradient, `s` this array's state, `t` the number of the
update from 1, `lr` this update's learning rate, `wd` the weight decay; capitals are lists over the whole model, and `D`
is its common state. The result is the new parameter.
"""

# ruff: noqa: B905, D403, E731, RUF005
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportOptionalCall=false, reportOptionalMemberAccess=false, reportOptionalOperand=false

import math

import numpy as np
from numpy import sign, sqrt


def zeros(p):
    return np.zeros_like(p)


def norm(x):
    return np.sqrt((x * x).sum())


def rms(x):
    return np.sqrt((x * x).mean())


def sf_adamw(p, g, s, t, lr, wd=0.0, b1=0.9, b2=0.999, eps=1e-8, warmup=0, r=0.0, power=2.0):
    """p is y, the point where gradients are taken. Per GROUP (not per parameter): s['lr_max'], s['W']."""
    if t == 1:
        s.update(z=p.copy(), v=zeros(p), lr_max=-1.0, W=0.0)
    lr = lr * min(1.0, t / warmup) if warmup else lr
    s["lr_max"] = max(s["lr_max"], lr)
    w = t**r * s["lr_max"] ** power
    s["W"] += w
    c = w / s["W"] if s["W"] else 0.0
    s["v"] = b2 * s["v"] + (1 - b2) * g * g
    u = g / (sqrt(s["v"] / (1 - b2**t)) + eps) + wd * p  # decay at y, after normalising
    p = p + c * (s["z"] - p) + lr * (b1 * (1 - c) - 1) * u  # y moves without x being stored
    s["z"] = s["z"] - lr * u
    return p


def sf_eval(y, z, b1):
    return y + (1 - 1 / b1) * (z - y)  # y -> x


def sf_train(x, z, b1):
    return x + (1 - b1) * (z - x)  # x -> y


def sf_sgd(p, g, s, t, lr, wd=0.0, b1=0.9, warmup=0, r=0.0, power=2.0):
    if t == 1:
        s.update(z=p.copy(), lr_max=-1.0, W=0.0)
    lr = lr * min(1.0, t / warmup) if warmup else lr
    s["lr_max"] = max(s["lr_max"], lr)
    w = t**r * s["lr_max"] ** power
    s["W"] += w
    c = w / s["W"] if s["W"] else 0.0
    u = g + wd * p
    p = p + c * (s["z"] - p) + lr * (b1 * (1 - c) - 1) * u
    s["z"] = s["z"] - lr * u
    return p


def sf_radam(p, g, s, t, lr, wd=0.0, b1=0.9, b2=0.999, eps=1e-8, r=0.0, power=2.0, silent=True):
    if t == 1:
        s.update(z=p.copy(), v=zeros(p), lr_max=-1.0, W=0.0)
    rho_inf = 2 / (1 - b2) - 1
    rho = rho_inf - 2 * t * b2**t / (1 - b2**t)
    rect = (
        sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho)) if rho > 4 else float(not silent)
    )
    lr = lr * rect  # 0 in the silent phase: c = 0, nothing moves
    s["lr_max"] = max(s["lr_max"], lr)
    w = t**r * s["lr_max"] ** power
    s["W"] += w
    c = w / s["W"] if s["W"] else 0.0
    s["v"] = b2 * s["v"] + (1 - b2) * g * g
    u = (g / (sqrt(s["v"] / (1 - b2**t)) + eps) if rho > 4 else g) + wd * p
    p = p + c * (s["z"] - p) + lr * (b1 * (1 - c) - 1) * u
    s["z"] = s["z"] - lr * u
    return p


def newton_schulz(g, steps=5, abc=((3.4445, -4.7750, 2.0315),), eps=1e-7, safety=1.0, rnd=lambda x: x):
    x = rnd(g.T if g.shape[0] > g.shape[1] else g)
    x = rnd(x / (rnd(norm(x) * safety) + eps))
    for i in range(steps):
        a, b, c = abc[min(i, len(abc) - 1)]
        G = rnd(x @ x.T)
        B = rnd(b * G + c * rnd(G @ G))
        x = rnd(a * x + rnd(B @ x))
    return x.T if g.shape[0] > g.shape[1] else x


def muon(p, g, s, t, lr, wd=0.0, beta=0.95, nesterov=True, scale="jordan", ns=newton_schulz):
    if t == 1:
        s["m"] = zeros(p)
    s["m"] = s["m"] + (1 - beta) * (g - s["m"])
    u = g + beta * (s["m"] - g) if nesterov else s["m"]
    u = u.reshape(len(u), -1)
    o = ns(u)
    R, C = o.shape
    k = {"jordan": max(1, R / C) ** 0.5, "moonlight": 0.2 * max(R, C) ** 0.5, "spectral": (R / C) ** 0.5}[scale]
    return p * (1 - lr * wd) - lr * k * o.reshape(p.shape)


def aux_adamw(p, g, s, t, lr, wd=0.0, b1=0.9, b2=0.95, eps=1e-10):
    if t == 1:
        s.update(m=zeros(p), v=zeros(p))
    s["m"] = s["m"] + (1 - b1) * (g - s["m"])
    s["v"] = s["v"] + (1 - b2) * (g * g - s["v"])
    u = s["m"] / (1 - b1**t) / (sqrt(s["v"] / (1 - b2**t)) + eps)
    return p * (1 - lr * wd) - lr * u


def lion(p, g, s, t, lr, wd=0.0, b1=0.9, b2=0.99):
    if t == 1:
        s["m"] = zeros(p)
    u = sign(b1 * s["m"] + (1 - b1) * g)
    s["m"] = b2 * s["m"] + (1 - b2) * g  # after the update, other beta, no correction
    return p * (1 - lr * wd) - lr * u


def prodigy(
    P,
    G,
    S,
    D,
    t,
    lr,
    wd=0.0,
    b1=0.9,
    b2=0.999,
    b3=None,
    eps=1e-8,
    d0=1e-6,
    d_coef=1.0,
    growth=math.inf,
    correct=False,
    safeguard=False,
    decouple=True,
):
    b3 = sqrt(b2) if b3 is None else b3
    if t == 1:
        D.update(d=d0, d_max=d0, num=0.0)
        [s.update(p0=p.copy(), s=zeros(p), m=zeros(p), v=zeros(p)) for p, s in zip(P, S)]
    d = D["d"]
    dlr = d * lr * (sqrt(1 - b2**t) / (1 - b1**t) if correct else 1.0)
    G = G if decouple else [g + wd * p for g, p in zip(G, P)]
    num = b3 * D["num"] + sum(d / d0 * dlr * (g * (s["p0"] - p)).sum() for p, g, s in zip(P, G, S))
    for g, s in zip(G, S):
        s["m"] = b1 * s["m"] + d * (1 - b1) * g
        s["v"] = b2 * s["v"] + d * d * (1 - b2) * g * g
        s["s"] = b3 * s["s"] + d / d0 * (d if safeguard else dlr) * g
    den = sum(np.abs(s["s"]).sum() for s in S)
    if den == 0:
        return P  # k is not counted up either
    d_hat = d_coef * num / den
    if d == d0:
        d = max(d, d_hat)
    D["d_max"] = max(D["d_max"], d_hat)
    D["num"] = num
    D["d"] = d = min(D["d_max"], d * growth)
    return [
        p - (wd * dlr * p if decouple else 0) - dlr * s["m"] / (sqrt(s["v"]) + d * eps) for p, s in zip(P, S)
    ]  # dlr: OLD d; eps: NEW d


def lamb(
    P,
    G,
    S,
    D,
    t,
    lr,
    wd=0.01,
    b1=0.9,
    b2=0.999,
    eps=1e-6,
    max_norm=1.0,
    correct=True,
    averaging=True,
    trust_clip=False,
    always=False,
):
    n = sqrt(sum((g * g).sum() for g in G))
    G = [g / max(1.0, n / max_norm) for g in G] if max_norm else G
    out = []
    for p, g, s in zip(P, G, S):
        if t == 1:
            s.update(m=zeros(p), v=zeros(p))
        s["m"] = b1 * s["m"] + ((1 - b1) if averaging else 1.0) * g
        s["v"] = b2 * s["v"] + (1 - b2) * g * g
        c1, c2 = (1 - b1**t, 1 - b2**t) if correct else (1, 1)
        u = s["m"] / c1 / (sqrt(s["v"]) / sqrt(c2) + eps) + wd * p  # decay BEFORE the ratio
        if wd != 0 or always:
            np_, nu = norm(p), norm(u)
            q = np_ / nu if np_ > 0 and nu > 0 else 1.0
            u = u * (min(q, 1.0) if trust_clip else q)
        out.append(p - lr * u)
    return out


def lars(
    p, g, s, t, lr, wd=0.0, mom=0.9, damp=0.0, nesterov=False, coeff=0.001, eps=1e-8, trust_clip=False, always=False
):
    if wd != 0 or always:
        a, b = norm(p), norm(g)
        q = coeff * a / (b + wd * a + eps) if a > 0 and b > 0 else 1.0
        q = min(q / lr, 1.0) if trust_clip else q
        g = (g + wd * p) * q  # ratio INSIDE the momentum
    if mom:
        s["m"] = g.copy() if t == 1 else mom * s["m"] + (1 - damp) * g
        g = g + mom * s["m"] if nesterov else s["m"]
    return p - lr * g


def soap(
    p,
    g,
    s,
    t,
    lr,
    wd=0.01,
    b1=0.95,
    b2=0.95,
    bs=None,
    eps=1e-8,
    every=10,
    max_dim=10000,
    eig1d=False,
    eigh=None,
    qr=None,
):
    bs = b2 if bs is None else bs
    use = [n <= max_dim and (p.ndim > 1 or eig1d) for n in p.shape]
    outer = lambda x, i: np.tensordot(x, x, [[j for j in range(x.ndim) if j != i]] * 2)

    def turn(x, back=False):
        for Q in s["Q"]:
            x = np.moveaxis(x, 0, -1) if Q is None else np.tensordot(x, Q, [[0], [1 if back else 0]])
        return x

    def accumulate():
        for i, ok in enumerate(use):
            if ok:
                s["L"][i] = s["L"][i] + (1 - bs) * (outer(g, i) - s["L"][i])

    if t == 1:  # first call: fill and decompose, no update, no decay
        s.update(m=zeros(p), v=zeros(p), L=[np.zeros((n, n)) if ok else None for n, ok in zip(p.shape, use)])
        accumulate()
        s["Q"] = [eigh(L) if ok else None for L, ok in zip(s["L"], use)]
        return p  # eigenvalues falling
    k = t - 1
    x = turn(g)
    s["m"] = b1 * s["m"] + (1 - b1) * x
    s["v"] = b2 * s["v"] + (1 - b2) * x * x  # both live in the eigenbasis
    u = turn(s["m"] / (sqrt(s["v"]) + eps), back=True)
    p = p - lr * sqrt(1 - b2**k) / (1 - b1**k) * u  # eps before the correction
    p = p - lr * wd * p  # after the update, of the new p
    s["m"] = turn(s["m"], back=True)
    accumulate()  # the basis changes after the step
    if k % every == 0:
        for i, ok in enumerate(use):
            if ok:
                Q = s["Q"][i]
                order = np.argsort(-np.diag(Q.T @ s["L"][i] @ Q), kind="stable")
                s["v"] = np.take(s["v"], order, i)
                s["Q"][i] = qr(s["L"][i] @ Q[:, order])
    s["m"] = turn(s["m"])
    return p


def caution(u, g, floor=1e-3):  # u: descent direction (before -lr), g: raw gradient
    mask = (u * g > 0).astype(u.dtype)
    return u * mask / max(mask.mean(), floor)


def c_adamw(p, g, s, t, lr, wd=0.0, b1=0.9, b2=0.999, eps=1e-6):
    if t == 1:
        s.update(m=zeros(p), v=zeros(p))
    p = p - lr * wd * p
    s["m"] = b1 * s["m"] + (1 - b1) * g
    s["v"] = b2 * s["v"] + (1 - b2) * g * g
    k = sqrt(1 - b2**t) / (1 - b1**t)
    return p - lr * k * caution(s["m"], g) / (sqrt(s["v"]) + eps)  # eps before the correction (old HF AdamW)


def c_lion(p, g, s, t, lr, wd=0.0, b1=0.95, b2=0.98):
    if t == 1:
        s["m"] = zeros(p)
    u = sign(b1 * s["m"] + (1 - b1) * g)
    s["m"] = b2 * s["m"] + (1 - b2) * g
    mask = (u * g > 0).astype(u.dtype)
    return p * (1 - lr * wd) - lr * u * mask * mask.size / (mask.sum() + 1)  # not the same normalisation


def grams(p, g, s, t, lr, wd=0.0, b1=0.9, b2=0.999, eps=1e-6):
    if t == 1:
        s.update(m=zeros(p), v=zeros(p))
    p = p - lr * wd * p
    s["m"] = b1 * s["m"] + (1 - b1) * g
    s["v"] = b2 * s["v"] + (1 - b2) * g * g
    return p - lr * sqrt(1 - b2**t) / (1 - b1**t) * sign(g) * np.abs(s["m"]) / (sqrt(s["v"]) + eps)


def stable_adamw(p, g, s, t, lr, wd=1e-2, b1=0.9, b2=0.99, eps=1e-6):
    if t == 1:
        s.update(m=zeros(p), v=zeros(p))
    h1, h2 = (b1**t - b1) / (b1**t - 1), (b2**t - b2) / (b2**t - 1)  # corrected betas; 0 at t=1
    s["m"] = h1 * s["m"] + (1 - h1) * g
    s["v"] = h2 * s["v"] + (1 - h2) * g * g
    r = sqrt((g * g / np.maximum(s["v"], eps * eps)).mean())  # per tensor, new v
    lr = lr / max(1.0, r)
    return p * (1 - lr * wd) - lr * s["m"] / (sqrt(s["v"]) + eps)  # the clipped lr scales the decay too


def kahan_add(p, c, d, r):  # r rounds to bfloat16; p + c is the true value
    c = r(c + d)
    q = r(p + c)
    return q, r(c + r(p - q))


def adafactor_hf(
    p,
    g,
    s,
    t,
    lr=None,
    wd=0.0,
    eps1=1e-30,
    eps2=1e-3,
    clip=1.0,
    decay=-0.8,
    b1=None,
    scale_param=True,
    relative=True,
    warmup_init=False,
):
    if relative:
        lr = min(1e-6 * t if warmup_init else 1e-2, 1 / sqrt(t))
    if scale_param:
        lr = lr * max(eps2, rms(p))
    b2 = 1 - t**decay  # 0 at t=1
    if t == 1:
        s.update(r=0.0, c=0.0, v=0.0, m=zeros(p))
    q = g * g + eps1
    if p.ndim >= 2:  # every tensor of two or more dimensions: last two, no size limit
        s["r"] = b2 * s["r"] + (1 - b2) * q.mean(-1)
        s["c"] = b2 * s["c"] + (1 - b2) * q.mean(-2)
        u = g / sqrt(s["r"] / s["r"].mean(-1, keepdims=True))[..., None] / sqrt(s["c"])[..., None, :]
    else:
        s["v"] = b2 * s["v"] + (1 - b2) * q
        u = g / sqrt(s["v"])
    u = lr * u / max(1.0, rms(u) / clip)  # lr goes INSIDE the momentum
    if b1 is not None:
        s["m"] = u = b1 * s["m"] + (1 - b1) * u
    return p - wd * lr * p - u  # wd uses the scaled lr


def adafactor_bv(
    p, g, s, t, lr, wd=0.0, decay=0.8, cap=0.999, min_dim=16, eps=1e-30, mom=0.9, clip=None, scaled_wd=True
):
    b2 = min(cap, 1 - t**-decay)
    q = g * g + eps
    order = np.argsort(p.shape, kind="stable")
    if p.ndim >= 2 and p.shape[order[-2]] >= min_dim:  # the TWO LARGEST dimensions, wherever they are
        r, c = order[-2], order[-1]  # ties: the later dimension counts as larger
        s["r"] = b2 * s.get("r", 0.0) + (1 - b2) * q.mean(c, keepdims=True)
        s["c"] = b2 * s.get("c", 0.0) + (1 - b2) * q.mean(r, keepdims=True)
        u = g / sqrt(s["r"] / s["r"].mean(r, keepdims=True)) / sqrt(s["c"])
    else:
        s["v"] = b2 * s.get("v", 0.0) + (1 - b2) * q
        u = g / sqrt(s["v"])
    if clip:
        u = u / max(1.0, rms(u) / clip)
    if mom is not None:
        s["m"] = u = mom * s.get("m", 0.0) + (1 - mom) * u  # stored in bfloat16 by default
    return p * (1 - (lr if scaled_wd else 1) * wd) - lr * u


def ademamix(p, g, s, t, lr, wd=0.0, b1=0.9, b2=0.999, b3=0.9999, alpha=2.0, T_alpha=None, T_b3=None, eps=1e-8):
    if t == 1:
        s.update(m1=zeros(p), m2=zeros(p), v=zeros(p))
    a = alpha * min(1, t / T_alpha) if T_alpha else alpha
    if T_b3 and t < T_b3:  # interpolate the half-life, not beta3
        half = lambda b: math.log(0.5) / math.log(b + 1e-8) - 1
        x = t / T_b3
        b3 = 0.5 ** (1 / ((1 - x) * half(b1) + x * half(b3) + 1))
    s["m1"] = b1 * s["m1"] + (1 - b1) * g
    s["m2"] = b3 * s["m2"] + (1 - b3) * g  # no bias correction of the slow one
    s["v"] = b2 * s["v"] + (1 - b2) * g * g
    u = (s["m1"] / (1 - b1**t) + a * s["m2"]) / (sqrt(s["v"]) / sqrt(1 - b2**t) + eps)
    return p - lr * (u + wd * p)


def adopt(p, g, s, t, lr, wd=0.0, b1=0.9, b2=0.9999, eps=1e-6, clip=lambda k: k**0.25, decouple=False):
    if wd and not decouple:
        g = g + wd * p
    if t == 1:
        s.update(m=zeros(p), v=g * g)
        return p  # first call only fills v: no update, no decay
    if wd and decouple:
        p = p - lr * wd * p
    n = g / np.maximum(sqrt(s["v"]), eps)  # OLD v; max, not +
    if clip:
        n = np.clip(n, -clip(t - 1), clip(t - 1))  # counts from 1 at the second call
    s["m"] = s["m"] + (1 - b1) * (n - s["m"])
    s["v"] = b2 * s["v"] + (1 - b2) * g * g
    return p - lr * s["m"]


def normuon(p, g, s, t, lr, wd=0.0, beta=0.95, b2=0.95, ns=newton_schulz):
    if t == 1:
        s.update(m=zeros(p), v=np.zeros(p.shape[:-1] + (1,)))
    s["m"] = s["m"] + (1 - beta) * (g - s["m"])
    o = ns(g + beta * (s["m"] - g))
    n0 = norm(o)
    s["v"] = s["v"] + (1 - b2) * ((o * o).mean(-1, keepdims=True) - s["v"])  # one number per row, no bias correction
    o = o / (sqrt(s["v"]) + 1e-10)
    o = o * (n0 / (norm(o) + 1e-10))  # Frobenius norm as before
    return p * (1 - lr * wd) - lr * max(1, p.shape[-2] / p.shape[-1]) ** 0.5 * o


def adan(p, g, s, t, lr, wd=0.0, b1=0.98, b2=0.92, b3=0.99, eps=1e-8, prox=True):
    if t == 1:
        s.update(m=zeros(p), d=zeros(p), n=zeros(p), last=g)  # first difference is 0
    q = g - s["last"]
    s["last"] = g
    s["m"] = b1 * s["m"] + (1 - b1) * g
    s["d"] = b2 * s["d"] + (1 - b2) * q
    s["n"] = b3 * s["n"] + (1 - b3) * (g + b2 * q) ** 2
    den = sqrt(s["n"]) / sqrt(1 - b3**t) + eps
    if not prox:
        p = p * (1 - lr * wd)
    p = p - lr / (1 - b1**t) * s["m"] / den - lr * b2 / (1 - b2**t) * s["d"] / den
    return p / (1 + lr * wd) if prox else p


def mars_adamw(
    p, g, s, t, lr, wd=0.0, b1=0.95, b2=0.99, gamma=0.025, eps=1e-8, lr1=None, b1d=(0.9, 0.95), wd1=0.1, all_dims=False
):
    if t == 1:
        s.update(m=zeros(p), v=zeros(p), last=zeros(p))  # so c_1 = g*(1 + gamma*b1/(1-b1))
    if p.ndim == 2 or all_dims:
        c = g + gamma * b1 / (1 - b1) * (g - s["last"])
        c = c / max(1.0, norm(c))  # per tensor, to norm 1
        s["last"] = g
    else:
        c, b1, b2, wd, lr = g, *b1d, wd1, lr if lr1 is None else lr1  # lr1 = lr * (lr_1d/lr at construction)
    s["m"] = b1 * s["m"] + (1 - b1) * c
    s["v"] = b2 * s["v"] + (1 - b2) * c * c
    u = s["m"] / ((sqrt(s["v"]) / sqrt(1 - b2**t) + eps) * (1 - b1**t))
    return p - lr * (u + wd * p)


def dynamic_map(signed):  # 256 values in [-1, 1] or [0, 1], denser at 0
    f = np.float32
    v = [0.0, 1.0]
    for i in range(7):
        e = np.linspace(0.1, 1, 2**i + 1 if signed else 2 ** (i + 1) + 1)
        c = 10.0 ** (i - 6) * (e[:-1] + e[1:]) / 2
        v += list(c) + (list(-c) if signed else [])
    return np.sort(np.array(v, f))  # -1 is not among the signed ones


def store8(x, q, block=256):
    f = np.float32
    y = x.reshape(-1, block)
    a = np.maximum(np.abs(y).max(1), f(1e-12))
    y = (y / a[:, None]).ravel()
    i = np.searchsorted(q, y, side="right") - 1
    j = np.minimum(i + 1, 255)
    i = np.maximum(i, 0)
    up = y - q[i] >= (q[j] - q[i]) * f(0.5)  # to the nearest, ties upwards
    return np.where(up, j, i).astype(np.uint8), a


def load8(c, a, q, shape):
    return (q[c].reshape(len(a), -1) * a[:, None]).reshape(shape)


def adamw8bit(p, g, s, t, lr, wd=1e-2, b1=0.9, b2=0.999, eps=1e-8):
    f = np.float32
    S, U = dynamic_map(True), dynamic_map(False)
    m = load8(*s["m"], S, p.shape) if t > 1 else zeros(p)
    v = load8(*s["v"], U, p.shape) if t > 1 else zeros(p)
    m = m + f(1 - b1) * (g - m)
    v = v + f(1 - b2) * (g * g - v)
    s["m"], s["v"] = store8(m, S), store8(v, U)  # stored rounded, used unrounded
    p = p - f(lr) * f(wd) * p
    return p - f(lr) * (m / f(1 - b1**t)) / (sqrt(v) / f(math.sqrt(1 - b2**t)) + f(eps))


def kron(p, g, s, t, lr, wd=0.0, b1=0.9, plr=0.1, V=None, update=True):
    """V: this step's standard normal matrix. With update=False (no preconditioner update this step) V is not drawn.

    Either may be a function, of the call number and the shape, and of the call number.
    """
    V = V(t, p.shape) if callable(V) else V
    update = update(t) if callable(update) else update
    if t == 1:
        s.update(m=zeros(p), Q=[np.eye(n) for n in p.shape])
    s["m"] = b1 * s["m"] + (1 - b1) * g
    m = s["m"] / (1 - b1**t)

    def lower(A, a):  # cheap lower bound of the spectral norm
        A = A / a
        x = A[:, np.argmax((A * A).sum(0))] @ A
        return norm(A @ (x / norm(x))) * a

    if update:
        # In place: the step below sees the noise, too.
        m = m + sqrt(float(np.finfo(np.float32).eps)) * np.abs(m).mean() * V
        Ql, Qr = s["Q"]
        A = Ql @ m @ Qr.T
        B = np.linalg.inv(Ql).T @ V @ np.linalg.inv(Qr)
        for i, (X, Y) in enumerate(((A @ A.T, B @ B.T), (A.T @ A, B.T @ B))):
            a = np.abs(X + Y).max()
            s["Q"][i] = s["Q"][i] - np.triu(plr * (X - Y)) / max(lower(X + Y, a) if a > 0 else a, 1e-300) @ s["Q"][i]
    Ql, Qr = s["Q"]
    u = Ql.T @ (Ql @ m @ Qr.T) @ Qr  # the NEW Q
    u = u * min(1.0, 1.1 / (rms(u) + 1e-12))
    return p - lr * (u + (wd * p if p.ndim >= 2 else 0))


def inv_root(A, q, eps):  # A^(-1/q)
    w, V = np.linalg.eigh(A + eps * np.eye(len(A)))
    w = w - min(w.min() - eps, 0.0)  # raise all if the smallest is below eps
    return (V * w ** (-1 / q)) @ V.T


def shampoo(
    p, g, s, t, lr, wd=0.0, b1=0.9, b2=0.999, eps=1e-12, every=1, start=1, graft=True, g_eps=1e-8, correct=True
):
    if t == 1:
        s.update(m=zeros(p), v=zeros(p), L=[np.zeros((n, n)) for n in p.shape], X=[np.eye(n) for n in p.shape])
    k = max(p.ndim, 1)
    w = 1.0 if b2 == 1 else 1 - b2
    for i in range(p.ndim):
        s["L"][i] = b2 * s["L"][i] + w * np.tensordot(g, g, [[j for j in range(p.ndim) if j != i]] * 2)
    s["v"] = b2 * s["v"] + w * g * g
    c2 = 1 - b2**t if correct and b2 < 1 else 1.0
    if (t % every == 0 and t > start) or t == start:
        s["X"] = [inv_root(L / c2, 2 * k, eps) for L in s["L"]]
    s["m"] = s["m"] + (1 - b1) * (g - s["m"])
    m = s["m"] / (1 - b1**t) if correct else s["m"]
    adam = m / (sqrt(s["v"] / c2) + g_eps)
    if graft and t < start:
        u = adam
    else:
        u = m
        for X in s["X"]:
            u = np.tensordot(u, X, [[0], [0]])
        if graft:
            u = u * norm(adam) / (norm(u) + 1e-16)
    return p - lr * (u + wd * p)


def dadapt_adam(
    P, G, S, D, t, lr, wd=0.0, b1=0.9, b2=0.999, eps=1e-8, d0=1e-6, growth=math.inf, correct=False, decouple=False
):
    r = sqrt(b2)
    if t == 1:
        D.update(d=d0, num=0.0)
        [s.update(s=zeros(p), m=zeros(p), v=zeros(p)) for p, s in zip(P, S)]
    dlr = D["d"] * lr * (sqrt(1 - b2**t) / (1 - b1**t) if correct else 1.0)
    G = G if decouple else [g + wd * p for g, p in zip(G, P)]
    acc = sum(dlr * (g * (s["s"] / (sqrt(s["v"]) + eps))).sum() for g, s in zip(G, S))  # OLD v and s
    for g, s in zip(G, S):
        s["m"] = b1 * s["m"] + dlr * (1 - b1) * g
        s["v"] = b2 * s["v"] + (1 - b2) * g * g
        s["s"] = r * s["s"] + dlr * (1 - r) * g
    l1 = sum(np.abs(s["s"]).sum() for s in S)
    num = r * D["num"] + (1 - r) * acc
    if l1 == 0:
        return P
    D["num"] = num
    D["d"] = max(D["d"], min(num / ((1 - r) * l1), D["d"] * growth))
    return [p - (wd * dlr * p if decouple else 0) - s["m"] / (sqrt(s["v"]) + eps) for p, s in zip(P, S)]


def lookahead(step, p, s, t, alpha=0.5, k=6):  # step: p -> p by the base optimizer
    q = step(p)
    if t == 1:
        s["slow"] = p.copy()  # the paper and optax; timm: slow starts at the first synchronisation
    if t % k == 0:
        q = s["slow"] = s["slow"] + alpha * (q - s["slow"])
    return q


def sam_point(P, G, rho=0.05, adaptive=False):  # where the second gradient is taken; the base then steps from P
    n = sqrt(
        sum(((np.abs(p) if adaptive else 1) * g * ((np.abs(p) if adaptive else 1) * g)).sum() for p, g in zip(P, G))
    )  # over ALL groups
    return [p + (p * p if adaptive else 1) * g * rho / (n + 1e-12) for p, g in zip(P, G)]


def galore_adamw(p, g, s, t, lr, wd=0.0, b1=0.9, b2=0.999, eps=1e-6, rank=2, gap=200, scale=1.0, svd=np.linalg.svd):
    tall = p.ndim == 2 and p.shape[0] >= p.shape[1]
    if p.ndim == 2:
        if (t - 1) % gap == 0:  # basis of the CURRENT gradient; m and v are not turned
            U, _, Vt = svd(g, full_matrices=False)
            s["B"] = Vt[:rank] if tall else U[:, :rank]
        x = g @ s["B"].T if tall else s["B"].T @ g
    else:
        x = g
    if t == 1:
        s.update(m=zeros(x), v=zeros(x))
    s["m"] = b1 * s["m"] + (1 - b1) * x
    s["v"] = b2 * s["v"] + (1 - b2) * x * x
    u = s["m"] / (sqrt(s["v"]) + eps)
    if p.ndim == 2:
        u = scale * (u @ s["B"] if tall else s["B"] @ u)
    p = p - lr * sqrt(1 - b2**t) / (1 - b1**t) * u
    return p - lr * wd * p  # decay of the new p


def apollo(
    p, g, s, t, lr, wd=0.0, b1=0.9, b2=0.999, eps=1e-6, B=None, scale=1.0, kind="channel", front=False, limit=True
):
    """B: this period's random projection, N(0, 1/rank), (rank, columns) for tall matrices, (rows, rank) for wide ones.

    It may be a function of the call number and the parameter's shape.
    """
    B = B(t, p.shape) if callable(B) else B
    tall = p.shape[0] >= p.shape[1]
    x = g @ B.T if tall else B.T @ g
    if t == 1:
        s.update(m=zeros(x), v=zeros(x))
    s["m"] = b1 * s["m"] + (1 - b1) * x
    s["v"] = b2 * s["v"] + (1 - b2) * x * x
    u = s["m"] / (sqrt(s["v"]) + eps)
    if kind == "channel":
        ax = 1 if tall else 0
        n = lambda a: sqrt((a * a).sum(ax, keepdims=True))
        f = n(u) / (n(x) + 1e-8)
    else:
        f = norm(u) / (norm(x) + 1e-8)  # APOLLO-Mini: rank 1, one factor
    y = g * f * (sqrt(scale) if front else 1)
    if limit:  # norm grows by at most 1 % a step
        if "n" in s:
            q = max(norm(y) / (s["n"] + 1e-8), 1.01) / 1.01
            s["n"] = norm(y) / q
            y = y / q
        else:
            s["n"] = norm(y)
    if not front:
        y = y * sqrt(scale)
    p = p - lr * sqrt(1 - b2**t) / (1 - b1**t) * y
    return p - lr * wd * p


def adam_mini_rows(p, g, s, t, lr, wd=0.0, b1=0.9, b2=0.999, eps=1e-8):
    if t == 1:
        s.update(m=zeros(p), v=0.0)
    s["v"] = b2 * s["v"] + (1 - b2) * (g * g).mean(
        1, keepdims=True
    )  # query, key: rows of one head together; else one number
    s["m"] = s["m"] + (1 - b1) * (g - s["m"])
    return p * (1 - lr * wd) - lr * s["m"] / (1 - b1**t) / (sqrt(s["v"]) / sqrt(1 - b2**t) + eps)


def came(p, g, s, t, lr, wd=0.0, b1=0.9, b2=0.999, b3=0.9999, eps1=1e-30, eps2=1e-16, clip=1.0):
    def factors(r, c):
        return 1 / sqrt(r / r.mean(-1, keepdims=True))[..., None] / sqrt(c)[..., None, :]

    if t == 1:
        s.update(m=zeros(p), r=0.0, c=0.0, v=0.0, ur=0.0, uc=0.0)
    q = g * g + eps1
    if p.ndim >= 2:
        s["r"] = b2 * s["r"] + (1 - b2) * q.mean(-1)
        s["c"] = b2 * s["c"] + (1 - b2) * q.mean(-2)
        u = g * factors(s["r"], s["c"])
    else:
        s["v"] = b2 * s["v"] + (1 - b2) * q
        u = g / sqrt(s["v"])
    u = u / max(1.0, rms(u) / clip)
    s["m"] = b1 * s["m"] + (1 - b1) * u  # no bias correction of either
    if p.ndim >= 2:
        e = (u - s["m"]) ** 2 + eps2
        s["ur"] = b3 * s["ur"] + (1 - b3) * e.mean(-1)
        s["uc"] = b3 * s["uc"] + (1 - b3) * e.mean(-2)
        u = s["m"] * factors(s["ur"], s["uc"])
    else:
        u = s["m"]
    return p - wd * lr * p - lr * u


def adabelief(p, g, s, t, lr, wd=0.0, b1=0.9, b2=0.999, eps=1e-16):
    if t == 1:
        s.update(m=zeros(p), v=zeros(p))
    p = p * (1 - lr * wd)
    s["m"] = b1 * s["m"] + (1 - b1) * g
    s["v"] = b2 * s["v"] + (1 - b2) * (g - s["m"]) ** 2 + eps  # NEW m; eps is added to the state at every step
    return p - lr / (1 - b1**t) * s["m"] / (sqrt(s["v"]) / sqrt(1 - b2**t) + eps)


def adabelief_all(
    p, g, s, t, lr, wd=0.0, b1=0.9, b2=0.999, eps=1e-16, rectify=True, sgd=True, amsgrad=False, decouple=True
):
    if t == 1:
        s.update(m=zeros(p), v=zeros(p), x=zeros(p))
    p, g = (p * (1 - lr * wd), g) if decouple else (p, g + wd * p)
    s["m"] = b1 * s["m"] + (1 - b1) * g
    s["v"] = b2 * s["v"] + (1 - b2) * (g - s["m"]) ** 2 + eps
    s["x"] = np.maximum(s["x"], s["v"])
    if not rectify:
        return p - lr / (1 - b1**t) * s["m"] / (sqrt(s["x" if amsgrad else "v"]) / sqrt(1 - b2**t) + eps)
    n_max = 2 / (1 - b2) - 1
    n = n_max - 2 * t * b2**t / (1 - b2**t)
    if n < 5:
        return p - lr / (1 - b1**t) * s["m"] if sgd else p
    r = sqrt((1 - b2**t) * (n - 4) / (n_max - 4) * (n - 2) / n * n_max / (n_max - 2)) / (1 - b1**t)
    return p - lr * r * s["m"] / (sqrt(s["v"]) + eps)  # v, not the largest one


def laprop(p, g, s, t, lr, wd=0.0, b1=0.9, b2=0.999, eps=1e-15):
    if t == 1:
        s.update(m=zeros(p), v=zeros(p), l1=0.0, l2=0.0)
    s["v"] = b2 * s["v"] + (1 - b2) * g * g
    s["l1"] = b1 * s["l1"] + (1 - b1) * lr
    s["l2"] = b2 * s["l2"] + (1 - b2)
    s["m"] = b1 * s["m"] + (1 - b1) * lr * g / (sqrt(s["v"] / s["l2"]) + eps)  # lr is inside the momentum
    p = p - s["m"] / (s["l1"] / lr)
    return p - wd * p  # author: NOT multiplied by lr


def sophia_g(p, g, s, t, lr, wd=0.1, b1=0.965, rho=0.04, bs=5120):
    if t == 1:
        s.setdefault("h", zeros(p))
        s["m"] = zeros(p)
    s["m"] = b1 * s["m"] + (1 - b1) * g
    u = sign(s["m"]) * np.minimum(np.abs(s["m"]) / (rho * bs * s["h"] + 1e-15), 1.0)
    return p * (1 - lr * wd) - lr * u


def sophia_hessian(g_sampled, s, b2=0.99):
    s["h"] = b2 * s["h"] + (1 - b2) * g_sampled**2  # every k=10 steps, own backward pass


def scion(p, g, s, t, lr, mom=0.1, scale=1.0, unconstrained=False, ns=newton_schulz):
    if t == 1:
        s["m"] = zeros(p)
    s["m"] = (1 - mom) * s["m"] + mom * g  # mom is the weight of the NEW gradient
    m = s["m"]
    if p.ndim == 2:
        o = ns(m) * (p.shape[0] / p.shape[1]) ** 0.5  # Spectral
    elif p.ndim > 2:
        o = (
            ns(m.reshape(len(m), -1)).reshape(p.shape) * (p.shape[0] / p.shape[1]) ** 0.5 / p.shape[2] ** (p.ndim - 2)
        )  # SpectralConv
    else:
        o = m / (rms(m) + 1e-8)  # BiasRMS
    return p * (1 if unconstrained else 1 - lr) - lr * scale * o  # decay by lr itself: no wd


def scion_sign(p, g, s, t, lr, mom=0.1, scale=1.0):  # norm='Sign', for embedding/output (fan_out, fan_in)
    if t == 1:
        s["m"] = zeros(p)
    s["m"] = (1 - mom) * s["m"] + mom * g
    return p * (1 - lr) - lr * scale * sign(s["m"]) / p.shape[1]


def dion(p, g, s, t, lr, wd=0.01, mu=0.95, rank=3, eps=1e-8, Q0=None):
    if t == 1:
        s.update(m=zeros(p), Q=Q0.copy())  # Q0 ~ N(0, 1), (columns, r)
    s["m"] = s["m"] + g  # no decay here
    P, _ = np.linalg.qr(s["m"] @ s["Q"])  # column signs cancel
    Rr = s["m"].T @ P
    s["m"] = s["m"] - (1 - mu) * P @ Rr.T  # error feedback: only the taken part decays
    s["Q"] = Rr / (sqrt((Rr * Rr).sum(0, keepdims=True)) + eps)
    return p * (1 - lr * wd) - lr * (p.shape[0] / p.shape[1]) ** 0.5 * P @ s["Q"].T


def project_scale_invariant(p, g, u, delta, ratio, eps):
    for view in (lambda x: x.reshape(len(x), -1), lambda x: x.reshape(1, -1)):
        P, Gm, U = view(p), view(g), view(u)
        dot = lambda a, b: (a * b).sum(1)
        cos = np.abs(dot(P, Gm) / (np.maximum(sqrt(dot(P, P)), eps) * np.maximum(sqrt(dot(Gm, Gm)), eps)))
        if cos.max() < delta / sqrt(P.shape[1]):
            n = P / (sqrt(dot(P, P)) + eps)[:, None]
            return (U - n * dot(n, U)[:, None]).reshape(p.shape), ratio
    return u, 1.0


def adamp(p, g, s, t, lr, wd=0.0, b1=0.9, b2=0.999, eps=1e-8, delta=0.1, ratio=0.1, nesterov=False):
    if t == 1:
        s.update(m=zeros(p), v=zeros(p))
    s["m"] = b1 * s["m"] + (1 - b1) * g
    s["v"] = b2 * s["v"] + (1 - b2) * g * g
    u = (b1 * s["m"] + (1 - b1) * g if nesterov else s["m"]) / (sqrt(s["v"]) / sqrt(1 - b2**t) + eps)
    r = 1.0
    if p.ndim > 1:
        u, r = project_scale_invariant(p, g, u, delta, ratio, eps)
    return p * (1 - lr * wd * r) - lr / (1 - b1**t) * u


def sgdp(p, g, s, t, lr, wd=0.0, mom=0.9, damp=0.0, nesterov=False, eps=1e-8, delta=0.1, ratio=0.1):
    s["m"] = mom * s.get("m", 0.0) + (1 - damp) * g
    u = g + mom * s["m"] if nesterov else s["m"]
    r = 1.0
    if p.ndim > 1:
        u, r = project_scale_invariant(p, g, u, delta, ratio, eps)
    return p * (1 - lr * wd * r / (1 - mom)) - lr * u  # decay divided by 1 - momentum


def ftrl(p, g, s, t, lr, power=-0.5, beta=0.0, l1=0.0, l2=0.0):
    if t == 1:
        s.update(z=zeros(p), n=zeros(p) + 0.0)
    with np.errstate(divide="ignore"):
        old = s["n"] ** -power
    s["n"] = s["n"] + g * g
    s["z"] = s["z"] + g - (s["n"] ** -power - old) / lr * p
    u = (l1 * sign(s["z"]) - s["z"]) / ((beta + sqrt(s["n"])) / lr + l2)
    return np.where(np.abs(s["z"]) <= l1, 0.0, u)


def novograd(p, g, s, t, lr, wd=0.0, b1=0.95, b2=0.98, eps=1e-8):
    s["v"] = (g * g).sum() if t == 1 else b2 * s["v"] + (1 - b2) * (g * g).sum()  # one number per tensor; sum, not mean
    s["m"] = b1 * s.get("m", zeros(p)) + g / (sqrt(s["v"]) + eps) + wd * p  # decay inside the momentum; no (1-b1)
    return p - lr * s["m"]


def yogi(p, g, s, t, lr, b1=0.9, b2=0.999, eps=1e-3, init=1e-6, m0=1e-6):
    if t == 1:
        s.update(m=zeros(p) + m0, v=zeros(p) + init)
    s["m"] = b1 * s["m"] + (1 - b1) * g
    s["v"] = s["v"] - (1 - b2) * sign(s["v"] - g * g) * g * g
    return p - lr * s["m"] / (1 - b1**t) / (sqrt(s["v"] / (1 - b2**t)) + eps)


def amsgrad(p, g, s, t, lr, b1=0.9, b2=0.999, eps=1e-8, corrected=False):
    if t == 1:
        s.update(m=zeros(p), v=zeros(p), x=zeros(p))
    s["m"] = b1 * s["m"] + (1 - b1) * g
    s["v"] = b2 * s["v"] + (1 - b2) * g * g
    c = 1 - b2**t
    s["x"] = np.maximum(s["x"], s["v"] / (c if corrected else 1))  # optax: corrected; torch: raw, corrected afterwards
    return p - lr * s["m"] / (1 - b1**t) / (sqrt(s["x"]) / (1 if corrected else sqrt(c)) + eps)


def signum(p, g, s, t, lr, wd=0.0, beta=0.9):
    if t == 1:
        s["m"] = zeros(p)
    s["m"] = beta * s["m"] + (1 - beta) * g
    return p * (1 - lr * wd) - lr * sign(s["m"])
