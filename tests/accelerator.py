"""A simulated accelerator: tensors on it compute on the CPU, but never together with tensors that are not.

``torch.device("lazy")`` runs nothing by itself. Inside :class:`Accelerator` an operation on tensors there runs the
CPU's kernel on the numbers behind them, and its result is there, too; so clients can be trained on it, alone or under
``vmap``. Whatever mixes them with a tensor on the CPU fails as it does on a real one; single numbers (no dimension) may
be mixed, and ``.to`` and ``.cpu`` carry tensors over. What has to be launched, waited for or copied is counted.
"""

from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

DEVICE = torch.device("lazy")
ATEN = torch.ops.aten
CARRIES = {ATEN._to_copy.default, ATEN.copy_.default}
ALLOCATES = {ATEN.empty, ATEN.empty_like, ATEN.empty_strided, ATEN.new_empty, ATEN.new_empty_strided}
WAITS = {  # the size or the value of their result is the host's affair
    *(ATEN._local_scalar_dense, ATEN.nonzero, ATEN.masked_select, ATEN.equal, ATEN.is_nonzero, ATEN.bincount),
    *(ATEN._unique2, ATEN.unique_dim, ATEN.unique_consecutive, ATEN.repeat_interleave),
}


class Remote(torch.Tensor):
    """A tensor on the accelerator; ``numbers`` holds what it is made of."""

    @staticmethod
    def __new__(cls, numbers):
        return torch.Tensor._make_wrapper_subclass(
            cls, numbers.shape, strides=numbers.stride(), dtype=numbers.dtype, device=DEVICE
        )

    def __init__(self, numbers):
        self.numbers = numbers

    @property
    def data(self):
        return torch.Tensor.data.__get__(self)

    @data.setter
    def data(self, other):
        torch.Tensor.data.__set__(self, other)
        self.numbers = other.numbers

    def tolist(self):
        return self.cpu().tolist()

    def __repr__(self, **_):
        return f"Remote({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        raise RuntimeError("a tensor on the accelerator is used outside of it")


class Accelerator(TorchDispatchMode):
    """Makes the simulated device work.

    Attributes:
        launches: Operations there, by name; views and allocations are none.
        waits: How often the host waits for the device, by the operation that makes it wait.
        copied_to_host: Numbers copied to the host, by the shape of the tensor.
        copied_to_device: Numbers copied to the device, by the shape of the tensor.
    """

    def __init__(self):
        super().__init__()
        self.reset()

    def reset(self):
        self.launches, self.waits = Counter(), Counter()
        self.copied_to_host, self.copied_to_device = Counter(), Counter()

    @property
    def operations(self):
        return self.launches.total()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        remote = {id(tensor.numbers): tensor for tensor in tensors if isinstance(tensor, Remote)}
        local = [tensor for tensor in tensors if not isinstance(tensor, Remote)]
        if remote and operation not in CARRIES and any(tensor.dim() for tensor in local):
            raise RuntimeError(f"{operation}: expected all tensors on one device, found {DEVICE} and cpu")
        device = kwargs.get("device")
        there = bool(remote) if device is None else torch.device(device).type == DEVICE.type
        if operation is ATEN.copy_.default:
            there = isinstance(args[0], Remote)
        self._count(operation, args, kwargs, bool(remote), there)
        if operation is ATEN._local_scalar_dense.default:
            there = False
        if "device" in kwargs:
            kwargs["device"] = torch.device("cpu")
        args, kwargs = tree_map_only(Remote, lambda tensor: tensor.numbers, (args, kwargs))
        result = operation(*args, **kwargs)
        if not there:
            return result
        return tree_map_only(
            torch.Tensor, lambda t: self._seen(remote[id(t)]) if id(t) in remote else Remote(t), result
        )

    def _seen(self, tensor):
        """Let a tensor that was worked on in place have the shape of what is behind it (``squeeze_``)."""
        if tensor.shape != tensor.numbers.shape:
            with self:
                tensor.data = Remote(tensor.numbers)
        return tensor

    def _count(self, operation, args, kwargs, remote, there):
        packet, name = operation.overloadpacket, operation.overloadpacket.__name__
        if operation in CARRIES:
            source = args[0] if operation is ATEN._to_copy.default else args[1]
            if isinstance(source, Remote) != there:
                (self.copied_to_device if there else self.copied_to_host)[tuple(source.shape)] += 1
                later = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
                if not (there and (later or source.dim() == 0)):
                    self.waits[name] += 1
        if not (remote or there):
            return
        indices = args[1] if packet in (ATEN.index, ATEN.index_put_, ATEN.index_put) else ()
        if packet in WAITS or any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices):
            self.waits[name] += 1
        if there and not operation.is_view and packet not in ALLOCATES and packet is not ATEN._local_scalar_dense:
            self.launches[name] += 1
