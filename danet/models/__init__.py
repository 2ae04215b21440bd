"""The network of the detector: ``build_model(ModelConfig(name="danet_s"))``."""

from danet.models.danet import DANet, build_model
from danet.models.heads import Output

__all__ = ["DANet", "Output", "build_model"]
