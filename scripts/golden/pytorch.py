"""What PyTorch computes: log-probabilities, loss, LoRA gradients and twenty steps of AdamW, in float32."""

import numpy as np
import peft
import torch
import transformers
from peft.tuners.lora import LoraLayer

from golden.families import N_VOCAB, Family
from golden.families.family import SAMPLE_LENGTHS

RANK = 4
ALPHA = 8.0
ADAMW = {"lr": 3e-3, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "weight_decay": 0.1}
N_STEPS = 20


def add_adapter(model: transformers.PreTrainedModel, family: Family, generator: torch.Generator) -> peft.PeftModel:
    """Add LoRA with A ~ N(0, 1/n_in) and B ~ N(0, 0.3^2), so that no gradient is zero."""
    config = peft.LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        target_modules=list(family.targets),
        fan_in_fan_out=model.config.model_type == "gpt2",
        task_type="CAUSAL_LM",
    )
    adapted = peft.get_peft_model(model, config)
    with torch.no_grad():
        for layer in adapted.modules():
            if isinstance(layer, LoraLayer):
                A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
                A.copy_(torch.randn(A.shape, generator=generator) / A.shape[1] ** 0.5)
                B.copy_(torch.randn(B.shape, generator=generator) * 0.3)
    return adapted.eval()


def make_batch(generator: torch.Generator, lengths: tuple[int, ...] = SAMPLE_LENGTHS) -> dict[str, np.ndarray]:
    """Draw rows of all samples, one sample after another; ``lengths`` are how many each has.

    The first third of each sample (its prompt) has weight 0, the others 0.5, 1 or 1.5.
    """
    rows: dict[str, list[torch.Tensor]] = {"tokens": [], "positions": [], "sequences": [], "targets": [], "weights": []}
    for sequence, length in enumerate(lengths):
        tokens = torch.randint(4, N_VOCAB, (length + 1,), generator=generator)
        weights = 0.5 * torch.randint(1, 4, (length,), generator=generator)
        weights[: length // 3] = 0
        for key, value in zip(
            rows, (tokens[:-1], torch.arange(length), torch.full((length,), sequence), tokens[1:], weights), strict=True
        ):
            rows[key].append(value)
    batch = {key: torch.cat(values).numpy() for key, values in rows.items()}
    return {key: value.astype(np.float32 if key == "weights" else np.int32) for key, value in batch.items()}


def target_log_probs(model: torch.nn.Module, batch: dict[str, np.ndarray]) -> torch.Tensor:
    """Give log p(target) of every row, shape (n_rows,); each sample is a forward pass of its own."""
    parts = []
    for sequence in np.unique(batch["sequences"]):
        own = batch["sequences"] == sequence
        tokens, targets = (torch.from_numpy(batch[key][own]).long() for key in ("tokens", "targets"))
        logits = model(input_ids=tokens[None], use_cache=False).logits[0]
        parts.append(torch.log_softmax(logits, -1).gather(1, targets[:, None])[:, 0])
    return torch.cat(parts)


def summed_loss(log_probs: torch.Tensor, batch: dict[str, np.ndarray]) -> torch.Tensor:
    return -(torch.from_numpy(batch["weights"]) * log_probs).sum()


def check_precision(
    adapted: peft.PeftModel,
    batch: dict[str, np.ndarray],
    masks: dict[str, torch.Tensor],
    numbers: dict[str, np.ndarray],
    gradients: dict[str, torch.Tensor],
) -> None:
    """Raise if float64 gives other gradients (1.5e-5 in norm) or losses (5e-5) than ``reference`` gave in float32.

    A choice between experts that hangs by the last bit, or a norm of next to nothing, would make the numbers a matter
    of the order of sums. ``adapted`` must be as it was then; it is left trained, in float64.
    """
    adapted.double()
    torch.set_default_dtype(torch.float64)
    try:
        exact, exact_gradients = reference(adapted, batch, masks)
    finally:
        torch.set_default_dtype(torch.float32)
    errors = {name: float((gradients[name] - exact).norm() / exact.norm()) for name, exact in exact_gradients.items()}
    worst = max(errors, key=lambda name: errors[name])
    loss_error = float(np.abs(numbers["losses"] / exact["losses"] - 1).max())
    if not (errors[worst] < 1.5e-5 and loss_error < 5e-5):
        raise AssertionError(
            f"float32 does not do: {worst} {errors[worst]:.1e}, losses {loss_error:.1e}; another seed?"
        )


def reference(
    adapted: peft.PeftModel, batch: dict[str, np.ndarray], masks: dict[str, torch.Tensor] | None = None
) -> tuple[dict[str, np.ndarray], dict[str, torch.Tensor]]:
    """Compute PyTorch's numbers, and the gradients by parameter name, each times its mask where it has one.

    ``log_probs`` (n_rows,) and ``loss_sum``: -sum of weight * log p(target), whose gradients these are. ``losses``
    (N_STEPS + 1,): the weighted mean before each step of AdamW, and after the last. The adapter is left trained.
    """
    parameters = {name: value for name, value in adapted.named_parameters() if value.requires_grad}
    log_probs = target_log_probs(adapted, batch)
    loss_sum = summed_loss(log_probs, batch)
    gradients = dict(zip(parameters, torch.autograd.grad(loss_sum, list(parameters.values())), strict=True))
    for name, mask in (masks or {}).items():
        gradients[name] *= mask

    optimizer = torch.optim.AdamW(
        parameters.values(),
        lr=ADAMW["lr"],
        betas=(ADAMW["beta1"], ADAMW["beta2"]),
        eps=ADAMW["epsilon"],
        weight_decay=ADAMW["weight_decay"],
    )
    losses = []
    for step in range(N_STEPS + 1):
        loss = summed_loss(target_log_probs(adapted, batch), batch) / float(batch["weights"].sum())
        losses.append(loss.item())
        if step < N_STEPS:
            optimizer.zero_grad()
            loss.backward()
            for name, mask in (masks or {}).items():
                parameters[name].grad *= mask
            optimizer.step()
    numbers = {
        "log_probs": log_probs.detach().numpy(),
        "loss_sum": np.float64(loss_sum.item()),
        "losses": np.array(losses),
    }
    return numbers, gradients
