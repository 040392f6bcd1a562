"""Multiple-choice tasks scored by log-probability, as EleutherAI's lm-evaluation-harness scores them."""
