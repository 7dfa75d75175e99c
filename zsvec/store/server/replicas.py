"""Where the copies of a collection are, as the consensus of a cluster says, and what follows for requests to it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qdrant_client import models

Consistency = models.ReadConsistencyType | int


@dataclass(frozen=True, slots=True)
class Replicas:
    """The copies of each shard of a collection.

    Attributes:
        shards: For each, the peers that have a copy, and whether that is active.
    """

    shards: Sequence[Mapping[int, bool]]

    @classmethod
    def of(cls, info: models.CollectionClusterInfo) -> Replicas:
        """As a node says."""
        shards: dict[int, dict[int, bool]] = defaultdict(dict)
        for local in info.local_shards:
            shards[local.shard_id][info.peer_id] = local.state == models.ReplicaState.ACTIVE
        for remote in info.remote_shards:
            shards[remote.shard_id][remote.peer_id] = remote.state == models.ReplicaState.ACTIVE
        return cls([shards[number] for number in sorted(shards)])

    @property
    def copied(self) -> bool:
        """Whether there is a shard with several copies."""
        return any(len(peers) > 1 for peers in self.shards)

    @property
    def consistency(self) -> Consistency:
        """Of reads: a quorum; one copy where there are two and the other is known not to be active.

        ``majority`` would need every copy. With one of two gone there is no quorum, and none is needed: a write is
        acknowledged by all copies that are active.
        """
        alone = any(len(peers) == 2 and sum(peers.values()) == 1 for peers in self.shards)
        return 1 if alone else models.ReadConsistencyType.QUORUM

    @property
    def ordering(self) -> models.WriteOrdering:
        """Of conditional writes: by the highest peer, which is their leader dead or alive, unless it is not active."""
        led = all(peers[max(peers)] for peers in self.shards if peers)
        return models.WriteOrdering.STRONG if led else models.WriteOrdering.MEDIUM


UNKNOWN = Replicas(())
"""Where a node does not say."""
