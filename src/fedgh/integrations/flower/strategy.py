"""Any aggregation rule inside any message-based Flower strategy."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from flwr.serverapp.strategy.strategy_utils import validate_message_reply_consistency
from torch import Tensor, nn

from fedgh.aggregator.base import Aggregate, Aggregator
from fedgh.config.rules import build_aggregators
from fedgh.core.errors import ConfigurationError
from fedgh.core.types import Cohort, CohortResult
from fedgh.federation.finite import set_aside_nonfinite
from fedgh.federation.round import affordable
from fedgh.integrations.flower.records import NUM_EXAMPLES, PARTITION_ID, Layout, gather, metrics_in
from fedgh.metric.conflict import conflict_metrics, coordinate_metrics, harmonization_metrics, matching_gram

log = logging.getLogger("flwr")


class Harmonized(Strategy):
    """Combine the clients' updates by one of our rules, then let another strategy make its server step.

    The rule sees ``U``, the rows ``local - global`` of the trainable parameters, and gives one update, for FedGH
    ``(weights^T C) U`` with weights by the strategy's ``weighted_by_key`` (``num-examples``). The wrapped strategy then
    receives every reply with ``global + update`` in place of its own parameters: whatever mean, median or selection it
    takes of equal arrays is that array, so FedAvg moves to it, FedAvgM, FedAdam and the like take their step along the
    update, and FedProx still tells the clients its ``mu``. It goes on sampling, averaging metrics and evaluating as
    before. A strategy that depends on how the clients' own parameters differ, such as one that clips them, cannot be
    wrapped; wrap this one with it instead.

    Everything else follows its own policy, whatever the wrapped strategy made of it: running statistics are averaged
    by the weights or kept, integer counters take the largest value or are kept. Clients whose parameters are not
    finite are set aside with a warning; replies that carry an error reach the wrapped strategy, which logs them.

    Args:
        strategy: Any of ``flwr.serverapp.strategy``.
        aggregator: A rule, or a choice of ``aggregator=`` with the settings of its yaml.
        parameters: Names of the trainable arrays, or the module that has them; all floating arrays if None, which is
            wrong for a model with running statistics.
        buffers: ``average`` or ``keep_global``.
        seed: Of the rule's randomness, which is addressed by (seed, round, client). Clients are told apart by the
            ``partition-id`` in their metrics if all report one, else by their node.

    Raises:
        ConfigurationError: If a name or value is unknown.
    """

    def __init__(
        self,
        strategy: Strategy,
        aggregator: Aggregator | str = "fedgh",
        parameters: Collection[str] | nn.Module | None = None,
        buffers: str = "average",
        seed: int = 1,
    ) -> None:
        if buffers not in ("average", "keep_global"):
            raise ConfigurationError(f"buffers must be one of average, keep_global, got {buffers!r}")
        if isinstance(parameters, nn.Module):
            parameters = [name for name, p in parameters.named_parameters() if p.requires_grad]
        if isinstance(aggregator, str):
            aggregator = build_aggregators([aggregator])[aggregator]
        self.strategy, self.aggregator = strategy, aggregator
        self.parameters, self.buffers, self.seed = parameters, buffers, seed
        self._memory: dict[str, Tensor] = {}
        self._layout: Layout | None = None
        self._sent = ArrayRecord()
        self._client_of_node: dict[int, int] = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Remember what the updates are relative to, and let the strategy send it."""
        if self._layout is None:
            self._layout = Layout.of(arrays, self.parameters)
            statistics = [n for n in self._layout.groups[0] if n.endswith(("running_mean", "running_var"))]
            if statistics:
                log.warning("%s count as parameters; pass Harmonized(..., parameters=<module>)", ", ".join(statistics))
        self._sent = arrays
        return self.strategy.configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Harmonize the replies, and let the strategy make its step; see :class:`Harmonized`."""
        replies = list(replies)
        failed = [reply for reply in replies if reply.has_error()]
        trained = [reply for reply in replies if not reply.has_error()]
        if self._layout is None or not trained:
            return self.strategy.aggregate_train(server_round, replies)
        weighted_by = getattr(self.strategy, "weighted_by_key", NUM_EXAMPLES)
        validate_message_reply_consistency([reply.content for reply in trained], weighted_by, check_arrayrecord=True)
        by_client = self._by_client(trained)
        params, buffers, counters = self._layout.split(self._sent)
        contents = {client_id: reply.content for client_id, reply in by_client.items()}
        result = gather(contents, self._layout, params, weighted_by)
        block_grams = result.updates.gram(by_block=True) if affordable(result.updates) else result.updates.gram()[None]
        result, block_grams, dropped = set_aside_nonfinite(result, block_grams, "drop", server_round - 1)
        metrics: dict[str, float] = {"federation/num_dropped": len(dropped)}
        if result.client_ids:
            shares = result.num_examples / result.num_examples.sum()
            aggregate = self._combine(result, shares, block_grams.sum(0), server_round - 1, params)
            metrics |= _metrics(result, shares, block_grams, aggregate)
            if self.buffers == "average":
                buffers, counters = shares.to(result.buffers) @ result.buffers, result.counters.amax(0)
            target = self._layout.join(params + aggregate.update, buffers, counters)
            for client_id in result.client_ids:
                (key,) = contents[client_id].array_records
                contents[client_id][key] = ArrayRecord(dict(target))  # one each: some strategies take theirs apart
        arrays, summary = self.strategy.aggregate_train(
            server_round, [*failed, *(by_client[k] for k in result.client_ids)]
        )
        if arrays is not None:
            arrays = self._layout.join(self._layout.split(arrays)[0], buffers, counters)
        summary = MetricRecord({**(summary or {}), **metrics})
        summary.pop(PARTITION_ID, None)  # the strategy has averaged it like any other number
        return arrays, summary

    def _combine(
        self, result: CohortResult, shares: Tensor, gram: Tensor, round_index: int, params: Tensor
    ) -> Aggregate:
        cohort = Cohort(result.client_ids, shares, result.train_loss, self.seed, round_index, params)
        aggregate = self.aggregator(result.updates, gram, cohort, self._memory)
        self._memory = aggregate.state
        return aggregate

    def _by_client(self, replies: list[Message]) -> dict[int, Message]:
        """Return the replies by client id: partition ids, or numbers in the order in which nodes turned up."""
        told = {k: r for r in replies if isinstance(k := metrics_in(r.content).get(PARTITION_ID), int)}
        if len(told) == len(replies):
            return told
        for node in sorted(reply.metadata.src_node_id for reply in replies):
            self._client_of_node.setdefault(node, len(self._client_of_node))
        return {self._client_of_node[reply.metadata.src_node_id]: reply for reply in replies}

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Leave it to the strategy."""
        return self.strategy.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Leave it to the strategy."""
        return self.strategy.aggregate_evaluate(server_round, replies)

    def summary(self) -> None:
        """Leave it to the strategy."""
        self.strategy.summary()


def _metrics(result: CohortResult, shares: Tensor, block_grams: Tensor, aggregate: Aggregate) -> dict[str, float]:
    """Return conflict before and harmonization after the rule, under the names of a run's own metrics."""
    gram = block_grams.sum(0)
    metrics = conflict_metrics(gram)
    if aggregate.coefficients is None:
        return metrics | coordinate_metrics(aggregate.update, result.updates.combine(shares))
    matching = matching_gram(gram, block_grams, aggregate.coefficients)
    if matching is not None:
        metrics |= harmonization_metrics(matching, shares, aggregate.coefficients, aggregate.mixing)
    return metrics
