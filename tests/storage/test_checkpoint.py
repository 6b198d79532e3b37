"""Checkpoints: they come back as they were, survive damage, and say what does not fit."""

import collections
import errno
import logging
import os
import random
import stat
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedgh.core.errors import CheckpointError, StorageError
from fedgh.core.types import ServerState
from fedgh.storage import checkpoint as checkpoints
from fedgh.storage.checkpoint import Checkpoint, check_fits, layout_of, load, load_newest, save
from fedgh.storage.client_store import ClientStore


def state(round_index, seed=0):
    generator = torch.Generator().manual_seed(seed + round_index)
    return ServerState(
        round_index=round_index,
        params=torch.randn(2000, generator=generator),
        buffers=torch.randn(5, generator=generator),
        counters=torch.tensor([3, 4]),
        optimizer={"m": torch.randn(2000, generator=generator)},
        aggregator={"a/memory": torch.ones(2, dtype=torch.float64)},
        clients={7: {"c": torch.randn(4, generator=generator), "rounds": torch.tensor(2)}, 11: {}},
    )


def checkpoint(round_index):
    return Checkpoint(
        server=state(round_index),
        config="seed: 1\n",
        wandb_id="abcd1234",
        layout={"head.weight": [3, 4], "head.bias": [3]},
        dataset="d" * 16,
        partition="p" * 64,
    )


def equal(left, right):
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(equal(left[k], right[k]) for k in left)
    return left == right


def test_round_trip(tmp_path):
    original = checkpoint(12)
    path = save(original, tmp_path / "checkpoints")
    assert path.name == "round_000012.ckpt"
    restored = load(path)
    assert equal(dict(vars(restored.server)), dict(vars(original.server)))
    assert replace(restored, server=original.server) == original
    assert isinstance(next(iter(restored.server.clients)), int)


def test_what_callbacks_remember_comes_back_too_and_older_files_have_none(tmp_path):
    memory = {"Shadow": {"gradvac": {"client_ids": torch.tensor([3, 5]), "targets": torch.eye(2)}}}
    path = save(replace(checkpoint(1), callbacks=memory), tmp_path)
    assert equal(load(path).callbacks, memory)
    content = torch.load(path, weights_only=True)
    del content["callbacks"]
    torch.save(content, path)
    assert load(path).callbacks == {}


def test_nothing_but_tensors_and_plain_values(tmp_path):
    """``weights_only=True`` runs no code from the file."""
    path = save(checkpoint(1), tmp_path)
    assert torch.load(path, weights_only=True)["version"] == checkpoints.VERSION

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "evil"),)

    torch.save({"version": 1, "server": Evil()}, path)
    with pytest.raises(CheckpointError, match=r"round_000001.ckpt cannot be read: UnpicklingError"):
        load(path)
    assert not (tmp_path / "evil").exists()


def test_the_last_two_are_kept_and_nothing_is_left_aside(tmp_path):
    for t in range(1, 13):
        save(checkpoint(t), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["round_000011.ckpt", "round_000012.ckpt"]
    save(checkpoint(13), tmp_path, keep=3)
    assert len(list(tmp_path.iterdir())) == 3
    restored, path = load_newest(tmp_path)
    assert path.name == "round_000013.ckpt"
    assert restored.server.round_index == 13


def test_the_file_is_synced_before_it_gets_its_name(tmp_path, monkeypatch):
    seen = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda f: (seen.append(sorted(p.name for p in tmp_path.iterdir())), real(f)))
    save(checkpoint(1), tmp_path)
    assert seen == [["round_000001.tmp"], ["round_000001.ckpt"]]  # the file, then the folder


def damage(path, how):
    content = bytearray(path.read_bytes())
    if how == "flip":
        content[len(content) // 3] ^= 1  # among the parameters, not in the padding
    elif how == "truncate":
        content = content[: len(content) // 2]
    elif how == "empty":
        content = bytearray()
    else:
        content = bytearray(len(content))
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["flip", "truncate", "empty", "zeros"])
def test_a_damaged_newest_is_reported_and_the_previous_one_used(tmp_path, caplog, how):
    save(checkpoint(3), tmp_path)
    damage(save(checkpoint(4), tmp_path), how)
    with caplog.at_level(logging.WARNING, "fedgh"):
        restored, path = load_newest(tmp_path)
    assert path.name == "round_000003.ckpt"
    assert equal(restored.server.params, state(3).params)
    assert "round_000004.ckpt" in caplog.text
    assert "trying the one before it" in caplog.text


def test_no_flipped_bit_goes_unnoticed(tmp_path):
    """A byte anywhere: the file is refused, or the byte was padding and everything comes back as it was."""
    path = save(checkpoint(1), tmp_path)
    original, content = checkpoint(1), path.read_bytes()
    places = random.Random(0)
    refused = 0
    for _ in range(150):
        changed = bytearray(content)
        changed[places.randrange(len(content))] ^= 1 << places.randrange(8)
        path.write_bytes(changed)
        try:
            restored = load(path)
        except CheckpointError:
            refused += 1
        else:
            assert equal(dict(vars(restored.server)), dict(vars(original.server)))
    assert refused > 100


def test_no_checkpoint_at_all(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no file round_<t>.ckpt; .*Start the run again without resume="):
        load_newest(tmp_path / "nothing")
    damage(save(checkpoint(1), tmp_path), "truncate")
    with pytest.raises(CheckpointError, match="holds 1 damaged files"):
        load_newest(tmp_path)
    with pytest.raises(CheckpointError, match=r"there is no checkpoint .*round_000009.ckpt; expected a file"):
        load(tmp_path / "round_000009.ckpt")


def test_another_version_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "VERSION", 99)
    path = save(checkpoint(1), tmp_path)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="has format version 99, this program reads versions 1 and 2; update it"):
        load(path)


def test_a_full_disk_is_named_and_costs_nothing(tmp_path, monkeypatch):
    first = save(checkpoint(1), tmp_path)

    def full(content, file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(StorageError, match=r"cannot write checkpoint .*round_000002.ckpt: No space left on device$"):
        save(checkpoint(2), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [first.name]
    assert load_newest(tmp_path)[0].server.round_index == 1


def test_what_a_kill_leaves_aside_does_no_harm(tmp_path):
    save(checkpoint(1), tmp_path)
    (tmp_path / "round_000002.tmp").write_bytes(b"half a checkpoint")
    assert load_newest(tmp_path)[0].server.round_index == 1
    save(checkpoint(2), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["round_000001.ckpt", "round_000002.ckpt"]


def test_another_model_is_named(make, tmp_path):
    layout = layout_of(make.federation().model)
    assert layout == {"head.weight": [3, 4], "head.bias": [3]}
    path = tmp_path / "x.ckpt"
    check_fits(checkpoint(1), path, layout, "d" * 16, "p" * 64)
    message = (
        r"x.ckpt is of another model: parameter head.weight has shape \[3, 4\] there and \[3, 5\] here; use the model="
    )
    with pytest.raises(CheckpointError, match=message):
        check_fits(checkpoint(1), path, {**layout, "head.weight": [3, 5]}, "d" * 16, "p" * 64)
    with pytest.raises(CheckpointError, match=r"parameter body.weight has shape None there and \[2\] here"):
        check_fits(checkpoint(1), path, {**layout, "body.weight": [2]}, "d" * 16, "p" * 64)


def test_of_several_parameters_that_differ_the_first_is_named(tmp_path):
    """Not one that is the same in both, whatever the order they come in."""
    theirs = {"a.weight": [1], "c.weight": [2], "b.weight": [3], "d.bias": [4]}
    saved = replace(checkpoint(1), layout=theirs)
    ours = {"d.bias": [5], "a.weight": [1], "c.weight": [7], "b.weight": [9]}
    with pytest.raises(CheckpointError, match=r"parameter b.weight has shape \[3\] there and \[9\] here"):
        check_fits(saved, tmp_path / "x.ckpt", ours, "d" * 16, "p" * 64)
    del ours["b.weight"]
    with pytest.raises(CheckpointError, match=r"parameter b.weight has shape \[3\] there and None here"):
        check_fits(saved, tmp_path / "x.ckpt", ours, "d" * 16, "p" * 64)


@pytest.mark.parametrize("what", ["dataset", "partition"])
def test_other_data_are_named(tmp_path, what):
    prints = {"dataset": "d" * 16, "partition": "p" * 64, what: "e" * 16}
    message = f"is of another {what}: fingerprint {what[0] * 12} there and eeeeeeeeeeee here; the files or the settings"
    with pytest.raises(CheckpointError, match=message):
        check_fits(checkpoint(1), tmp_path / "x.ckpt", checkpoint(1).layout, **prints)


@pytest.mark.parametrize("kind", ["float32", "array", "defaultdict"])
def test_a_memory_that_could_not_be_read_back_is_refused_when_it_is_saved(tmp_path, kind):
    value = {"float32": np.float32(0.5), "array": np.arange(3), "defaultdict": collections.defaultdict(int)}[kind]
    save(checkpoint(1), tmp_path)
    with pytest.raises(CheckpointError, match=rf"callback Best remembers under seen.best a \S+{kind}") as caught:
        save(replace(checkpoint(2), callbacks={"Good": {"a": 1}, "Best": {"seen": {"best": value}}}), tmp_path)
    assert "torch.from_numpy(...), float(...), dict(...)" in str(caught.value)
    with pytest.raises(CheckpointError, match=r"callback Best remembers as a whole a \S+defaultdict"):
        save(replace(checkpoint(2), callbacks={"Best": collections.defaultdict(int)}), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["round_000001.ckpt"]


def test_numbers_of_numpy_in_a_memory_come_back_as_pythons(tmp_path):
    path = save(replace(checkpoint(1), callbacks={"Best": {"best": np.float64(0.1), "round": np.int64(7)}}), tmp_path)
    assert load(path).callbacks == {"Best": {"best": 0.1, "round": 7}}


def test_a_server_state_of_something_else_is_refused(tmp_path):
    server = replace(state(1), aggregator={"names": np.array(["a"])})
    with pytest.raises(CheckpointError, match=r"the server's aggregator.names is a numpy.ndarray"):
        save(replace(checkpoint(1), server=server), tmp_path)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EACCES, errno.EPERM, errno.ENOTSUP, errno.ENOSYS])
@pytest.mark.parametrize("call", ["open", "fsync"])
def test_a_folder_that_cannot_be_synced_is_no_reason_to_stop(tmp_path, monkeypatch, number, call):
    """Network file systems refuse the sync, Windows to open a folder."""
    real = getattr(os, call)

    def refuse(what, *others):
        if stat.S_ISDIR(os.stat(what).st_mode):
            raise OSError(number, os.strerror(number))
        return real(what, *others)

    monkeypatch.setattr(os, call, refuse)
    clients = ClientStore(tmp_path / "clients", 0).updated({3: {"x": torch.ones(2)}}, 1)
    path = save(replace(checkpoint(1), server=replace(state(1), clients=clients)), tmp_path / "checkpoints")
    monkeypatch.undo()
    assert load(path).server.round_index == 1


def test_a_disk_that_fails_is_one(tmp_path, monkeypatch):
    def fail(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match="Input/output error"):
        save(checkpoint(1), tmp_path)


def test_the_cause_of_a_full_disk_is_found_below_what_pytorch_says(tmp_path):
    """PyTorch closes its archive after the error, and reports that instead: "unexpected pos 64 vs 0"."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(StorageError, match=r"cannot write checkpoint .*round_000001.ckpt: File too large$"):
            save(replace(checkpoint(1), server=replace(state(1), params=torch.zeros(1 << 20))), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())
