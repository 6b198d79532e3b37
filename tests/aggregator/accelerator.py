"""A simulated accelerator: tensors on it compute on the CPU, but never together with tensors that are not.

``torch.device("lazy")`` runs nothing by itself. Inside :class:`Accelerator` an operation on tensors there runs the
CPU's kernel on the numbers behind them, and its result is there, too. Whatever mixes them with a tensor on the CPU
fails as it does on a real one; single numbers (no dimension) may be mixed, and ``.to`` and ``.cpu`` carry tensors over.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

DEVICE = torch.device("lazy")
CARRIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}


class Remote(torch.Tensor):
    """A tensor on the accelerator; ``numbers`` holds what it is made of."""

    @staticmethod
    def __new__(cls, numbers):
        return torch.Tensor._make_wrapper_subclass(
            cls, numbers.shape, strides=numbers.stride(), dtype=numbers.dtype, device=DEVICE
        )

    def __init__(self, numbers):
        self.numbers = numbers

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        raise RuntimeError("a tensor on the accelerator is used outside of it")


class Accelerator(TorchDispatchMode):
    """Makes the simulated device work; counts the operations there in ``operations``."""

    def __init__(self):
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        remote = {id(tensor.numbers): tensor for tensor in tensors if isinstance(tensor, Remote)}
        local = [tensor for tensor in tensors if not isinstance(tensor, Remote)]
        if remote and operation not in CARRIES and any(tensor.dim() for tensor in local):
            raise RuntimeError(f"{operation}: expected all tensors on one device, found {DEVICE} and cpu")
        there = bool(remote) if kwargs.get("device") is None else torch.device(kwargs["device"]).type == DEVICE.type
        if operation is torch.ops.aten.copy_.default:
            there = isinstance(args[0], Remote)
        if operation is torch.ops.aten._local_scalar_dense.default:
            there = False
        if "device" in kwargs:
            kwargs["device"] = torch.device("cpu")
        self.operations += there
        args, kwargs = tree_map_only(Remote, lambda tensor: tensor.numbers, (args, kwargs))
        result = operation(*args, **kwargs)
        if not there:
            return result
        return tree_map_only(torch.Tensor, lambda t: remote[id(t)] if id(t) in remote else Remote(t), result)
