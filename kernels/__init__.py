"""The operations of a training step. `reference` states each in plain PyTorch; fused Triton versions join it here."""
