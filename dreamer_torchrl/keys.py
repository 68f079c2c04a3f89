"""Every key of a step, and which names an environment's observations may not have."""

from __future__ import annotations

LATENTS = ("belief", "state", "previous_action")  # what the policy carries from step to step

WRITTEN = (
    *("noise", "previous", "encoded_latents", "prior_logits", "posterior_logits", "features", "reconstruction"),
    *("reward_logits", "predicted_reward", "continue_logits", "continuation", "imagination", "bootstrap"),
    *("priority", "priority_weight"),
)
"""What an update writes beside the observations, and the importance weights of a prioritized sampler."""

MASK = "action_mask"  # which classes an action may have: a flag for each, shown by the environment

STREAM = "stream"  # which endless stream of steps a step belongs to
ENDLESS = "endless"  # what TorchRL wants and `steps_of` drops: a reward and flags that never come, the episode's number

NOT_OBSERVED = ("reward", "is_init", "terminated", "truncated", "done", "action", *LATENTS)
NOT_OBSERVED += (STREAM, ENDLESS, (ENDLESS, "episode"))
"""Keys of a step that are no observation, wherever a spec lists them."""
