"""The setting of the C library, in processes of their own: it cannot be taken back."""

import platform
import subprocess
import sys

import pytest

from fedgh.core import allocator

FAULTS = """
import resource, torch
from fedgh.core.allocator import keep_freed_memory
{setting}
for _ in range(20):  # the first few split what is left between the blocks
    torch.ones(10 << 20)  # 40 MiB
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    torch.ones(10 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(setting):
    code = FAULTS.format(setting=setting)
    return int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the setting")
def test_freed_memory_is_used_again():
    without, kept = faults(""), faults("assert keep_freed_memory()")
    assert without >= 5 * (40 << 20) / (2 << 20)  # mapped afresh each time, in pages of 2 MiB at most
    assert kept < without / 5


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the setting")
def test_the_environment_has_the_last_word(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    assert not allocator.keep_freed_memory()


def test_a_library_without_the_setting_is_left_alone(monkeypatch):
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _: object())
    assert not allocator.keep_freed_memory()
