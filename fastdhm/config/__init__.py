"""What a run is: a value for everything that a flag or a YAML file can set, all in one frozen dataclass."""

from fastdhm.config.run import TrainConfig

__all__ = ["TrainConfig"]
