"""When a collector that acts with a copy of the policy gets newer weights, and how old those were that acted."""

from __future__ import annotations

from torchrl.collectors import BaseCollector

from dreamer_torchrl.agents.policy import Policy
from dreamer_torchrl.config.schema import CollectorSettings
from dreamer_torchrl.training.progress import Progress


class Pushes:
    """Pushes weights to a collector every ``sync_every`` updates; the sync collector shares them."""

    def __init__(self, settings: CollectorSettings, progress: Progress):
        self.settings, self.progress = settings, progress
        self.made()

    def made(self) -> None:
        """A collector was made now, with the weights of now."""
        self.pushed = self.progress.updates

    def when_due(self, collector: BaseCollector | None, policy: Policy) -> None:
        chosen, updates = self.settings, self.progress.updates
        if collector is not None and chosen.kind != "sync" and updates >= self.pushed + chosen.sync_every:
            collector.update_policy_weights_(policy)
            self.pushed = updates

    def values(self, collector: BaseCollector | None) -> dict[str, float]:
        """The lag, where the collector knows it."""
        known = collector is not None and self.settings.kind == "ray"
        return {"collector/lag": collector.mean_lag()} if known else {}
