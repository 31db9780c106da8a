"""The fleet transformer over fused Triton kernels, its backward written out.

The same weights, the same function as FleetTransformer; what differs is what moves. Each operation is one launch for all
members, gradients go straight to their place in `gradient`, the residual stream's gradient is added within the norms'
backward, and nothing is kept for the backward that is cheaper to form again. Up to d_model 256 a norm is no launch of its
own: the product that writes the residual stream norms it, the product that forms the gradient of the normed takes it
through the norm. No autograd, no host synchronisation: a step may be captured in a CUDA graph.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyscaling.accounting import Shape
from pyscaling.kernels.attention import attention_backward, attention_forward
from pyscaling.kernels.embedding import embedding_backward, embedding_forward
from pyscaling.kernels.launch import float32_dots, target_of
from pyscaling.kernels.layer_norm import (
    STRETCH,
    WIDEST_TILE,
    Norm,
    NormGradient,
    SplitSums,
    backward_parts,
    layer_norm_backward,
    layer_norm_forward,
    norm_tile_rows,
    sum_all_parts,
)
from pyscaling.kernels.linear import forms_delta, linear_backward, linear_forward, linear_job
from pyscaling.kernels.linear_cross_entropy import linear_cross_entropy_backward, linear_cross_entropy_forward
from pyscaling.kernels.mlp import down_job, mlp_backward, mlp_forward
from pyscaling.models.transformer import FleetTransformer


@dataclass
class _Block:
    """What the backward of a block needs: activations [M, R, ...] and statistics."""

    x: Tensor
    attention_stats: Tensor
    h: Tensor
    qkv: Tensor
    mixed: Tensor
    lse: Tensor
    middle: Tensor
    mlp_stats: Tensor
    g: Tensor
    u: Tensor
    hidden: Tensor | None


class FusedTransformer(FleetTransformer):
    """FleetTransformer on kernels of pyscaling.kernels; see there.

    dtype: of activations and of the copy of the weights that products read; weights, their gradients and all sums
    are float32. `low` [M, P] is that copy (None for float32), which whoever changes `flat` must renew: `refresh`.
    ieee: float32 is multiplied as it stands even where tensor cores would do it in three parts.
    """

    def __init__(
        self,
        shape: Shape,
        seeds: Sequence[int],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        *,
        ieee: bool = False,
    ) -> None:
        super().__init__(shape, seeds, device)
        self.ieee = ieee
        self.low = self.flat.to(dtype) if dtype != torch.float32 else None
        self._weights: dict[str, Tensor] = {}
        self._gradient_of: dict[str, Tensor] = {}
        self._norms = [f"{i}.{kind}_norm" for i in range(shape.n_layer) for kind in ("attention", "mlp")] + [
            "final_norm"
        ]
        self._rms, self._norm_bias = shape.norm == "rmsnorm", "final_norm_bias" in self.parameters
        self._norm_in_product = shape.d_model <= WIDEST_TILE
        self._starts: dict[str, int] = {}
        self._tables: dict[Any, Tensor] = {}
        start = 0
        for (name, parameter), gradient in zip(self.parameters.items(), self._gradients, strict=True):
            size = parameter[0].numel()
            source = self.flat if self.low is None else self.low
            self._weights[name] = source[:, start : start + size].view(parameter.shape)
            self._gradient_of[name] = gradient
            self._starts[name] = start
            start += size
        kinds = ("gain", "bias") if self._norm_bias else ("gain",)
        places = [self._starts[f"{norm}_{kind}"] for norm in self._norms for kind in kinds]
        self._norm_places = torch.tensor(places, dtype=torch.int64, device=device)
        # 1 / R for each token, by [M, R]; all are kept, for a captured graph may read its own again at any time
        self._means: dict[torch.Size, Tensor] = {}

    def refresh(self) -> None:
        """Renews the copy of the weights in the activations' dtype."""
        if self.low is not None:
            self.low.copy_(self.flat)

    @torch.no_grad()
    def loss(self, tokens: Tensor) -> Tensor:
        with self._products():
            per_token, _, _ = self._forward(tokens)
        return per_token.mean(1)

    @torch.no_grad()
    def loss_and_gradient(self, tokens: Tensor) -> Tensor:
        with self._products():
            per_token, lse, kept = self._forward(tokens, keep=True)
            self._backward(tokens, lse, kept)
        return per_token.mean(1)

    @torch.no_grad()
    def hidden(self, tokens: Tensor) -> Tensor:
        with self._products():
            return self._hidden(tokens)[0]

    def _products(self) -> AbstractContextManager[None]:
        return float32_dots("ieee") if self.ieee else nullcontext()

    def _head(self) -> Tensor:
        return self._weights["token_embedding"].mT if self.shape.tied else self._weights["head"]

    def _norm_of(self, x: Tensor, name: str) -> Norm:
        """The norm of rows like x, its outputs not written yet."""
        stats = torch.empty(1 if self._rms else 2, *x.shape[:2], dtype=torch.float32, device=x.device)
        gain, bias = self._weights[f"{name}_gain"], self._weights.get(f"{name}_bias")
        return Norm(gain, bias, torch.empty_like(x), stats)

    def _normed(self, x: Tensor, name: str) -> tuple[Tensor, Tensor]:
        gain, bias = self._weights[f"{name}_gain"], self._weights.get(f"{name}_bias")
        normed, _, stats = layer_norm_forward(x, gain, bias, rms=self._rms)
        return normed, stats

    def _norm_parts(self, like: Tensor) -> Tensor:
        """[norms, 1 or 2, M, P, d]: each norm's gradients of gain and bias, summed over parts of the rows."""
        n_member, n_row, d = like.shape
        target = target_of(like.device)
        if self._norm_in_product:
            n_part = -(-n_row // norm_tile_rows(n_row, d, like.dtype, target))
        else:
            n_part = backward_parts(n_row, d, target)
        size = (len(self._norms), 1 + self._norm_bias, n_member, n_part, d)
        return torch.empty(size, dtype=torch.float32, device=like.device)

    def _split_sums(self, blocks: list[_Block]) -> tuple[dict[str, Tensor], SplitSums | None]:
        """Room for the parts of weights whose rows are split for their gradients, by name, and what sums them at the end."""
        w, n_member = self._weights, self.n_member
        n_split: dict[str, int] = {}
        for i, block in enumerate(blocks):
            n_split[f"{i}.qkv"] = linear_job(block.h, w[f"{i}.qkv"], self._norm_in_product).n_split
            n_split[f"{i}.out"] = linear_job(block.mixed, w[f"{i}.out"]).n_split
            n_split[f"{i}.up"] = linear_job(block.g, w[f"{i}.up"], self._norm_in_product).n_split
            n_split[f"{i}.down"] = down_job(block.x, block.u, block.hidden, w[f"{i}.down"], self.shape.mlp).n_split
        n_split = {name: n for name, n in n_split.items() if n > 1}
        if not n_split:
            return {}, None
        names = {name: (name, f"{name}_bias") if self.shape.bias else (name,) for name in n_split}
        sizes = {name: sum(w[part][0].numel() for part in names[name]) for name in n_split}
        splits = torch.empty(
            sum(n_split[name] * n_member * sizes[name] for name in n_split), dtype=torch.float32, device=self.device
        )
        parts, table, begin = {}, [], 0
        for name, n in n_split.items():
            end = begin + n * n_member * sizes[name]
            parts[name] = splits[begin:end].view(n, n_member, sizes[name])
            source = begin
            for part in names[name]:
                place, size = self._starts[part], w[part][0].numel()
                for first in range(0, size, STRETCH):
                    count = min(STRETCH, size - first)
                    table.append([source + first, sizes[name], n_member * sizes[name], n, place + first, count])
                source += size
            begin = end
        key = (tuple(n_split.items()), self.device)
        if key not in self._tables:  # a captured graph reads it, so it stays
            self._tables[key] = torch.tensor(table, dtype=torch.int64, device=self.device)
        return parts, SplitSums(splits, self._tables[key], n_member * sum(sizes.values()))

    def _attention_options(self) -> dict[str, Any]:
        rope_base = self.shape.rope_base if self.shape.position == "rope" else None
        return {"causal": True, "rope_base": rope_base, "qk_norm": self.shape.qk_norm}

    def _heads(self, qkv: Tensor, n_sequence: int) -> tuple[Tensor, Tensor, Tensor]:
        """Views q, k, v [M B, n_head, T, head_dim] of qkv [M, R, 3 d]."""
        n_member, n_row, _ = qkv.shape
        packed = qkv.view(n_member * n_sequence, n_row // n_sequence, 3, self.shape.n_head, self.shape.head_dim)
        q, k, v = packed.permute(2, 0, 3, 1, 4)
        return q, k, v

    def _hidden(self, tokens: Tensor, keep: bool = False) -> tuple[Tensor, Tensor, Tensor, list[_Block]]:
        """The normed residual stream, the stream itself, the norm's statistics, and what blocks keep."""
        shape, w = self.shape, self._weights
        n_sequence, length = tokens.shape[1:]
        if length > shape.context:
            raise ValueError(f"tokens hold sequences of {length}, the model's context is {shape.context}.")
        x = embedding_forward(tokens, w["token_embedding"], w.get("position_embedding"))  # [M, R, d]
        h, attention_stats = self._normed(x, self._norms[0])
        blocks = []
        for i in range(shape.n_layer):
            mlp_norm, next_norm = self._norms[2 * i + 1 : 2 * i + 3]
            qkv = linear_forward(h, w[f"{i}.qkv"], w.get(f"{i}.qkv_bias"))
            out, lse = attention_forward(*self._heads(qkv, n_sequence), **self._attention_options())
            mixed = out.transpose(1, 2).reshape(x.shape)  # a view
            norm = self._norm_of(x, mlp_norm) if self._norm_in_product else None
            middle = linear_forward(mixed, w[f"{i}.out"], w.get(f"{i}.out_bias"), x, norm)
            g, mlp_stats = (norm.normed, norm.stats) if norm is not None else self._normed(middle, mlp_norm)
            norm = self._norm_of(x, next_norm) if self._norm_in_product else None
            after, u, hidden = mlp_forward(
                g, w[f"{i}.up"], w.get(f"{i}.up_bias"), w[f"{i}.down"], w.get(f"{i}.down_bias"), middle, shape.mlp, norm
            )
            if keep:
                blocks.append(_Block(x, attention_stats, h, qkv, mixed, lse, middle, mlp_stats, g, u, hidden))
            x = after
            h, attention_stats = (norm.normed, norm.stats) if norm is not None else self._normed(x, next_norm)
        return h, x, attention_stats, blocks

    def _forward(self, tokens: Tensor, keep: bool = False) -> tuple[Tensor, Tensor, tuple[Any, ...]]:
        """Per-token losses and lse [M, R], and what the backward needs."""
        kept = self._hidden(tokens[:, :, :-1], keep)
        targets = tokens[:, :, 1:].reshape(self.n_member, -1).contiguous()
        loss, lse = linear_cross_entropy_forward(kept[0], self._head(), targets)
        return loss, lse, (*kept, targets)

    def _backward(self, tokens: Tensor, lse: Tensor, kept: tuple[Any, ...]) -> None:
        h, x, stats, blocks, targets = kept
        shape, w, of = self.shape, self._weights, self._gradient_of
        n_sequence = tokens.shape[1]
        if lse.shape not in self._means:
            self._means[lse.shape] = torch.full_like(lse, 1.0 / lse.shape[1])
        head_gradient = of["token_embedding"].mT if shape.tied else of["head"]
        grad, _ = linear_cross_entropy_backward(
            self._means[lse.shape], h, self._head(), targets, lse, grad_weight=head_gradient
        )
        parts = self._norm_parts(x)
        split, sums = self._split_sums(blocks)
        grad, *_ = layer_norm_backward(grad, x, w["final_norm_gain"], stats, parts=parts[-1])

        def through(name: str, z: Tensor, stats: Tensor, add: Tensor, parts: Tensor) -> tuple[Any, Any]:
            """What takes a gradient through the norm: within a product, or after it."""
            gain = w[f"{name}_gain"]
            if self._norm_in_product:
                return NormGradient(z, gain, stats, add, parts), lambda grad: grad
            return None, lambda grad: layer_norm_backward(grad, z, gain, stats, add, parts=parts)[0]

        for i in reversed(range(shape.n_layer)):
            block = blocks.pop()
            attention_norm, mlp_norm = self._norms[2 * i : 2 * i + 2]
            norm, after = through(mlp_norm, block.middle, block.mlp_stats, grad, parts[2 * i + 1])
            grad_g, *_ = mlp_backward(
                grad, block.g, w[f"{i}.up"], w[f"{i}.down"], block.u, shape.mlp,
                of[f"{i}.up"], of.get(f"{i}.up_bias"), of[f"{i}.down"], of.get(f"{i}.down_bias"), norm,
                has_bias=shape.bias, hidden=block.hidden, parts_up=split.get(f"{i}.up"), parts_down=split.get(f"{i}.down"),
            )  # fmt: skip
            grad = after(grad_g)
            delta = None  # what attention's backward needs of its output, formed on the way, or by a launch of its own
            if forms_delta(linear_job(block.mixed, w[f"{i}.out"]), shape.head_dim):
                delta = torch.empty_like(block.lse)
            grad_mixed, _, _ = linear_backward(
                grad, block.mixed, w[f"{i}.out"], of[f"{i}.out"], of.get(f"{i}.out_bias"), has_bias=shape.bias,
                parts=split.get(f"{i}.out"), delta=delta,
            )  # fmt: skip
            grad_qkv = torch.empty_like(block.qkv)
            grad_q, grad_k, grad_v = self._heads(grad_qkv, n_sequence)
            q, k, v = self._heads(block.qkv, n_sequence)
            by_head = (q.shape[0], q.shape[2], shape.n_head, shape.head_dim)
            attention_backward(
                grad_mixed.view(by_head).transpose(1, 2), q, k, v, block.mixed.view(by_head).transpose(1, 2), block.lse,
                **self._attention_options(), delta=delta, grad_q=grad_q, grad_k=grad_k, grad_v=grad_v,
            )  # fmt: skip
            norm, after = through(attention_norm, block.x, block.attention_stats, grad, parts[2 * i])
            grad_h, _, _ = linear_backward(
                grad_qkv, block.h, w[f"{i}.qkv"], of[f"{i}.qkv"], of.get(f"{i}.qkv_bias"), norm, has_bias=shape.bias,
                parts=split.get(f"{i}.qkv"),
            )  # fmt: skip
            grad = after(grad_h)
        sum_all_parts(parts.flatten(0, 1), self.gradient, self._norm_places, sums)
        embedding_backward(
            grad, tokens[:, :, :-1], shape.vocab_size, of["token_embedding"], of.get("position_embedding"),
            accumulate=shape.tied,
        )  # fmt: skip
