"""``fedgh-encode``: an encoder is trained and written; a set is encoded by it; and a run on the features is valid."""

import pytest

from fedgh import config
from fedgh.cli import encode
from fedgh.core.errors import ConfigurationError
from fedgh.dataset.encoder import open_encoder

TINY = ["dataset=digits", "dataset.train_fraction=0.05", "model.channels=[4,4,4,4,4,6]", "epochs=1", "batch_size=16"]


def test_trained_written_and_used(root_config, tmp_path, capsys):
    file = tmp_path / "mine.safetensors"
    encode.run(root_config(*TINY, f"output={file}", root="encode"))
    out = capsys.readouterr().out
    assert f"hash            {open_encoder(str(file)).hash}\n" in out
    assert "epoch 1 of 1: loss" in out
    assert f"fedgh-train dataset=encoded dataset.encoder={file} model=mlp" in out

    overrides = ["dataset=encoded", "dataset@dataset.images=digits", f"dataset.encoder={file}"]
    cfg = root_config(*overrides, f"dataset.cache={tmp_path}/cache", root="encode")
    encode.run(cfg)
    assert "digits_encoded: 1,438 training and 359 test examples, 6 features" in capsys.readouterr().out
    assert len(list((tmp_path / "cache").iterdir())) == 1
    train = config.resolve(root_config(*overrides, "model=mlp", "trainer=cpu", "logger=csv"))
    config.validate(train)
    config.parse(config.to_text(train))  # as a resumed run reads it: its images are a part of ours


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("precision=16", "precision must be one of auto, 32, bf16, got 16"),
        ("epochs=0", "epochs must be a number of at least 1, got 0"),
        ("lr=fast", "lr must be a number of at least 0, got 'fast'"),
    ],
)
def test_wrong_settings_are_refused_before_any_image_is_read(root_config, override, message):
    with pytest.raises(ConfigurationError, match=message):
        encode.run(root_config(*TINY, override, root="encode"))
