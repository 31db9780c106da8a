"""A fleet of decoder-only transformers: GPT-2 as in Kaplan et al. 2020, or with RoPE, RMSNorm, SwiGLU, QK-norm.

All weights of a member lie in one row of `flat` [M, P]; `parameters` are views of it, W [M, d_in, d_out]. So an
optimiser step, a clip by norm, a checkpoint and a copy of the state are each a few operations, whatever the depth.
Matrices come first in a row (they decay), gains, biases and embeddings after them (they do not).
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pyscaling.accounting import Shape
from pyscaling.kernels import reference as ops


class FleetTransformer:
    """M transformers of one shape.

    shape: the architecture. seeds: one per member, fixing its initial weights alone, whatever the other members.
    flat, gradient: [M, P] float32 storage of weights and their gradient; n_decayed: how many leading columns are
    matrices under weight decay.
    """

    def __init__(self, shape: Shape, seeds: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.shape, self.device = shape, torch.device(device)
        layout = _layout(shape)
        self.n_decayed = sum(math.prod(size) for size, _, decays in layout.values() if decays)
        n_parameter = sum(math.prod(size) for size, _, _ in layout.values())
        self.flat = torch.empty(len(seeds), n_parameter, device=device)
        self.gradient = torch.zeros_like(self.flat)
        self.parameters: dict[str, Tensor] = {}
        self._gradients: list[Tensor] = []  # views of `gradient`, in the order of `parameters`
        start = 0
        for name, (size, _, _) in layout.items():
            columns = slice(start, start + math.prod(size))
            self.parameters[name] = self.flat[:, columns].view(len(seeds), *size).requires_grad_()
            self._gradients.append(self.gradient[:, columns].view(len(seeds), *size))
            start = columns.stop
        with torch.no_grad():
            for member, seed in enumerate(seeds):
                generator = torch.Generator().manual_seed(seed)
                for name, (size, init, _) in layout.items():
                    value = torch.randn(size, generator=generator) * init if init is not None else torch.ones(size)
                    self.parameters[name][member] = value.to(device)

    @property
    def n_member(self) -> int:
        return self.flat.shape[0]

    def loss(self, tokens: Tensor) -> Tensor:
        """Mean next-token cross-entropy of each member, [M] in nats; tokens [M, B, T + 1] int64."""
        targets = tokens[:, :, 1:].reshape(self.n_member, -1)
        return ops.linear_cross_entropy(self.hidden(tokens[:, :, :-1]), self._head(), targets)

    def loss_and_gradient(self, tokens: Tensor) -> Tensor:
        """The loss of `loss`, detached, [M]; `gradient` then holds each member's gradient of its own loss."""
        loss = self.loss(tokens)
        # autograd.grad, not backward: .grad of a strided view costs a zeroing and an accumulation more a step
        for view, value in zip(
            self._gradients, torch.autograd.grad(loss.sum(), list(self.parameters.values())), strict=True
        ):
            view.copy_(value)
        return loss.detach()

    def logits(self, tokens: Tensor) -> Tensor:
        """Next-token logits [M, B, T, V] of tokens [M, B, T] int64."""
        return torch.bmm(self.hidden(tokens), self._head()).view(*tokens.shape, self.shape.vocab_size)

    def hidden(self, tokens: Tensor) -> Tensor:
        """The residual stream after the final norm, [M, B * T, d_model]; tokens [M, B, T], T at most `context`."""
        shape, p = self.shape, self.parameters
        n_member, n_sequence, length = tokens.shape
        if length > shape.context:
            raise ValueError(f"tokens hold sequences of {length}, the model's context is {shape.context}.")
        x = ops.embedding(tokens, p["token_embedding"])  # [M, B, T, d]
        if shape.position == "learned":
            x = x + p["position_embedding"][:, None, :length]
        x = x.view(n_member, -1, shape.d_model)  # [M, R, d]
        for i in range(shape.n_layer):
            h = self._norm(x, f"{i}.attention_norm")
            x = x + self._attention(h, i, n_sequence)
            h = self._norm(x, f"{i}.mlp_norm")
            x = x + ops.mlp(h, p[f"{i}.up"], p.get(f"{i}.up_bias"), p[f"{i}.down"], p.get(f"{i}.down_bias"), shape.mlp)
        return self._norm(x, "final_norm")

    def _attention(self, x: Tensor, i: int, n_sequence: int) -> Tensor:
        shape, p = self.shape, self.parameters
        n_member, n_row, d = x.shape
        qkv = ops.linear(x, p[f"{i}.qkv"], p.get(f"{i}.qkv_bias"))
        qkv = qkv.view(n_member * n_sequence, n_row // n_sequence, 3, shape.n_head, d // shape.n_head)
        qkv = qkv.permute(2, 0, 3, 1, 4)  # [3, M * B, n_head, T, head_dim]
        qk, v = qkv[:2], qkv[2]
        if shape.position == "rope":
            qk = ops.rotary(qk, shape.rope_base)
        if shape.qk_norm:
            qk = F.rms_norm(qk, qk.shape[-1:])
        q, k = qk
        mixed = ops.attention(q, k, v, causal=True).transpose(1, 2).reshape(n_member, n_row, d)
        return ops.linear(mixed, p[f"{i}.out"], p.get(f"{i}.out_bias"))

    def _norm(self, x: Tensor, name: str) -> Tensor:
        gain, bias = self.parameters[f"{name}_gain"], self.parameters.get(f"{name}_bias")
        return ops.rms_norm(x, gain) if self.shape.norm == "rmsnorm" else ops.layer_norm(x, gain, bias)

    def _head(self) -> Tensor:
        return self.parameters["token_embedding"].mT if self.shape.tied else self.parameters["head"]


def _layout(shape: Shape) -> dict[str, tuple[tuple[int, ...], float | None, bool]]:
    """Name -> (size, standard deviation of the initial weights or None for ones, under weight decay).

    Deviations fall as 1 / sqrt(fan in), so that activations keep their size from the narrowest member of a grid to
    the widest (muP, Yang et al. 2022, table 8); GPT-2's constant 0.02 is right near d_model 768 only.
    """
    d, d_ff = shape.d_model, shape.d_ff
    residual = 1 / math.sqrt(2 * shape.n_layer)  # GPT-2: the residual stream's variance does not grow with depth
    matrices: dict[str, tuple[tuple[int, ...], float | None, bool]] = {}
    vectors: dict[str, tuple[tuple[int, ...], float | None, bool]] = {}

    def norm(name: str) -> None:
        vectors[f"{name}_gain"] = ((d,), None, False)
        if shape.norm == "layernorm" and shape.bias:
            vectors[f"{name}_bias"] = ((d,), 0.0, False)

    def matrix(name: str, d_in: int, d_out: int, std: float) -> None:
        matrices[name] = ((d_in, d_out), std, True)
        if shape.bias:
            vectors[f"{name}_bias"] = ((d_out,), 0.0, False)

    for i in range(shape.n_layer):
        norm(f"{i}.attention_norm")
        matrix(f"{i}.qkv", d, 3 * d, 0.5 / math.sqrt(d))
        matrix(f"{i}.out", d, d, 0.5 * residual / math.sqrt(d))
        norm(f"{i}.mlp_norm")
        matrix(f"{i}.up", d, 2 * d_ff if shape.mlp == "swiglu" else d_ff, 0.5 / math.sqrt(d))
        matrix(f"{i}.down", d_ff, d, residual / math.sqrt(d_ff))
    norm("final_norm")
    if not shape.tied:
        matrices["head"] = ((d, shape.vocab_size), 0.0, True)
    vectors["token_embedding"] = ((shape.vocab_size, d), 0.5 / math.sqrt(d) if shape.tied else 0.5, False)
    if shape.position == "learned":
        vectors["position_embedding"] = ((shape.context, d), 0.1, False)
    return {**matrices, **vectors}
