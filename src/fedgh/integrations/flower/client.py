"""Our client as a Flower ClientApp: a SuperNode is one client of the federation that the run's config describes.

What takes seconds to import is imported where it is used: by default Flower starts a process per message.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedgh.core.errors import ConfigurationError

if TYPE_CHECKING:
    from flwr.app import MetricRecordValues
    from omegaconf import DictConfig

    from fedgh.core.types import ServerState
    from fedgh.federation.round import Federation

STATE = "fedgh-client"
"""Where a node keeps what its client remembers from round to round."""

app = ClientApp()


@app.query()
def introduce(message: Message, context: Context) -> Message:
    """Tell which client of the federation this node is."""
    return Message(RecordDict({"metrics": MetricRecord({"partition-id": client_id(context)})}), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train this node's client from the global model, as the sequential executor does in a simulation."""
    from fedgh.integrations.flower.records import LOCAL_STEPS, NUM_EXAMPLES, PARTITION_ID, TRAIN_LOSS, arrays_of

    _, federation, k, server = receive(message, context)
    result = federation.executor([k], server)
    context.state[STATE] = ArrayRecord(dict(result.client_states.get(k, {})))
    metrics: dict[str, MetricRecordValues] = {
        NUM_EXAMPLES: int(result.num_examples[0]),
        LOCAL_STEPS: int(result.local_steps[0]),
        TRAIN_LOSS: float(result.train_loss[0]),
        PARTITION_ID: k,
    }
    arrays, _ = arrays_of(federation.model.module)  # which the executor leaves as the client has trained it
    return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord(metrics)}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Score the global model on test data weighted to this client's label distribution."""
    from fedgh.federation.evaluation import cells_of, evaluate

    cfg, federation, k, server = receive(message, context)
    evaluation = evaluate(federation.model, server, federation.dataset, cfg.evaluation.batch_size)
    cells = cells_of(federation.dataset, federation.partition)
    mine = cells.client_score(evaluation.scores[evaluation.main], k)
    num_examples = len(federation.partition.client_indices[k])
    metrics = MetricRecord({"num-examples": num_examples, evaluation.main: mine})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


def receive(message: Message, context: Context) -> tuple[DictConfig, Federation, int, ServerState]:
    """Return the run's config and parts, this node's client, and the state that the message sets out from."""
    from fedgh.core.types import ServerState
    from fedgh.federation.round import to_device
    from fedgh.integrations.flower.deployment import kept, show_errors_as_one_line
    from fedgh.integrations.flower.records import Layout, arrays_in, arrays_of

    show_errors_as_one_line()
    trust = tuple(str(context.node_config.get("trust", "")).split())
    cfg, federation = kept(str(context.run_config["overrides"]), trust)
    k = client_id(context, len(federation.partition.client_indices))
    layout = Layout.of(*arrays_of(federation.model.module))
    (sent,) = message.content.config_records.values()
    memory = context.state.array_records.get(STATE, ArrayRecord())
    server = ServerState(
        int(sent["server-round"]) - 1,  # type: ignore[arg-type]
        *layout.split(arrays_in(message.content)),
        clients={k: memory.to_torch_state_dict()} if memory else {},
    )
    return cfg, federation, k, to_device(server, federation.model.device)


def client_id(context: Context, num_clients: int | None = None) -> int:
    """Return which client a node is.

    Raises:
        ConfigurationError: If the node does not say, or the federation has no such client.
    """
    found = context.node_config.get("partition-id")
    if not isinstance(found, int) or found < 0 or found >= (num_clients or found + 1):
        expected = f"0 to {num_clients - 1}, as partition.num_clients={num_clients}" if num_clients else "0, 1, ..."
        raise ConfigurationError(
            f"this SuperNode's partition-id is {found!r}, expected {expected}; start it with "
            "flower-supernode --node-config 'partition-id=0'"
        )
    return found
