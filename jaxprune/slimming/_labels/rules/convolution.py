"""Convolutions, plain, grouped, depthwise, dilated and transposed."""

from typing import Any

import jax.numpy as jnp

from jaxprune.slimming._labels import axes as ax
from jaxprune.slimming._labels.axes import Axes
from jaxprune.slimming._labels.evaluate import ShrinkSite
from jaxprune.slimming._labels.frames import Site
from jaxprune.slimming._labels.rules.base import Rule, settled
from jaxprune.slimming._labels.zeros import Zeros, ZeroSite


def _follow(site: Site, operands: list[Axes]) -> list[Axes]:
    # With g groups the input's channels are (g, inputs of a group) and the output's (g, outputs of a group).
    lhs, rhs = operands
    numbers, groups = site.eqn.params["dimension_numbers"], site.eqn.params["feature_group_count"]
    batch, features, *space = numbers.lhs_spec
    outputs, inputs, *window = numbers.rhs_spec
    if site.eqn.params["batch_group_count"] != 1:
        for axis in (*lhs, *rhs):
            site.freeze(axis, "a convolution grouped over the batch")
        return [tuple(ax.fixed(n) for n in site.out_shape())]
    for axis in (*(lhs[i] for i in space), *(rhs[i] for i in window)):
        site.freeze(axis, "the window of a convolution")
    channels = rhs[outputs]
    if groups == 1:
        site.unify(lhs[features], rhs[inputs])
    else:
        split_in = ax.split(site.labels, lhs[features], (groups, ax.size(rhs[inputs])))
        split_out = ax.split(site.labels, channels, (groups, ax.size(channels) // groups))
        site.unify(split_in[0], split_out[0])
        site.unify(split_in[1], rhs[inputs])
        channels = ax.merge(split_out)
    result: list[Any] = [None] * len(lhs)
    out_batch, out_features, *out_space = numbers.out_spec
    result[out_batch], result[out_features] = lhs[batch], channels
    for i in out_space:
        result[i] = ax.fixed(site.out_shape()[i])
    return [tuple(result)]


def _zero(site: ZeroSite, known: list[Zeros]) -> list[Zeros]:
    lhs, rhs = (k.axes for k in known)
    numbers = site.eqn.params["dimension_numbers"]
    features, (outputs, inputs) = numbers.lhs_spec[1], numbers.rhs_spec[:2]
    if not (settled(site, 0, features, lhs[features]) or settled(site, 1, inputs, rhs[inputs])):
        site.inexact(site.operand(0)[features], "a convolution over channels that masking does not make zero")
    result = [True] * len(lhs)
    result[numbers.out_spec[0]] = lhs[numbers.lhs_spec[0]]
    result[numbers.out_spec[1]] = rhs[outputs]
    return [Zeros(tuple(result))]


def _shrink(site: ShrinkSite, operands: list[Any]) -> list[Any]:
    lhs, rhs = operands
    if lhs.size == 0 or rhs.size == 0:  # a sum over no channel
        return [jnp.zeros(site.out_shape(), site.eqn.outvars[0].aval.dtype)]
    numbers = site.eqn.params["dimension_numbers"]
    groups = lhs.shape[numbers.lhs_spec[1]] // max(rhs.shape[numbers.rhs_spec[1]], 1)
    return site.bind(lhs, rhs, feature_group_count=groups)


TABLE = {"conv_general_dilated": Rule(_follow, _zero, _shrink)}
