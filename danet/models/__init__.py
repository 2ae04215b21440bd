"""The detector: ``build_model(ModelConfig(name="danet_s"))``."""

from danet.models.danet import DANet, Output, build_model

__all__ = ["DANet", "Output", "build_model"]
