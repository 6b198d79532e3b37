"""FedGH in Flower: any aggregation rule around any Flower strategy, and whole federations on Flower's engine."""

try:
    import flwr
except ModuleNotFoundError as error:
    raise ModuleNotFoundError('fedgh.integrations.flower needs Flower; type: pip install "fedgh[flower]"') from error
