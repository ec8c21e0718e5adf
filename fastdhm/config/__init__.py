"""What a run is: a value for everything that a flag or a YAML file can set, all in one frozen dataclass.

A topic a file, each a dataclass of its own; ``run.TrainConfig`` is all of them together. A field is added in its
topic: type, default, and a docstring whose first sentence is the flag's help. What a value must be is its type
(``rules``); what several values must be together stands in ``run.TOGETHER``.

The defaults are neutral: a data set's and a network's own values come from ``fastdhm.recipes``.
"""

from fastdhm.config.run import TOPICS, TrainConfig

__all__ = ["TOPICS", "TrainConfig"]
