"""Every key of a step, and which names an environment's observations may not have."""

from __future__ import annotations

LATENTS = ("belief", "state", "previous_action")
"""What the policy carries from step to step."""

WRITTEN = (
    *("noise", "previous", "encoded_latents", "prior_logits", "posterior_logits", "features", "reconstruction"),
    *("reward_logits", "predicted_reward", "continue_logits", "continuation", "imagination", "bootstrap"),
)
"""What an update writes beside the observations."""

NOT_OBSERVED = ("reward", "is_init", "terminated", "truncated", "done", "action", *LATENTS)
"""Keys of a step that are no observation, wherever a spec lists them."""
