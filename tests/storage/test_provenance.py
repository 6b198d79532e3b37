"""What stands behind a number, and a folder that can be written to."""

import errno
import os
from pathlib import Path

import pytest
import torch

from fedgh.core.errors import ConfigurationError
from fedgh.storage.provenance import check_writable, provenance


def test_provenance_names_what_made_a_number():
    found = provenance(torch.device("cpu"))
    assert found["versions"]["torch"] == torch.__version__.split("+")[0] or torch.__version__
    assert {"fedgh", "torch", "pytorch-lightning", "hydra-core", "numpy", "wandb"} <= set(found["versions"])
    assert found["device"] == "cpu"
    assert found["threads"] == torch.get_num_threads()
    assert found["cpu_count"] >= 1
    assert found["python"].startswith("3.")


def test_a_writable_folder_is_made_and_left_empty(tmp_path):
    check_writable(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_a_full_or_read_only_folder_is_named(tmp_path, monkeypatch, number):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "open", refuse)
    if number == errno.EROFS:
        monkeypatch.setattr(Path, "unlink", refuse)  # a read-only file system refuses that too, file or no file
    message = f"cannot write to {tmp_path}: {os.strerror(number)}; free space or choose another folder: paths.log_dir="
    with pytest.raises(ConfigurationError, match=message):
        check_writable(tmp_path)


def test_a_disk_that_fills_up_while_probing_is_left_clean(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigurationError, match="No space left on device"):
        check_writable(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"cannot write to .*below: Not a directory"):
        check_writable(tmp_path / "file" / "below")
