"""What a run is: a value for everything that a flag or a YAML file can set, all in one frozen dataclass.

A topic a file, each a dataclass of its own; ``run.TrainConfig`` is all of them together. A field is added in its
topic: type, default, the rule that its value keeps (``rules.setting``), and a docstring whose first line is the help of
its flag. The rules over several fields stand in ``run.TOGETHER``.

What is learnt from: data, images, labels. What is trained: model, method. How: optimizer, steps, machine. What is left:
output. Beside the topics: rules (what several fields share), run (all topics together).

The defaults are neutral: a data set's and a network's own values come from ``fastdhm.recipes``.
"""

from fastdhm.config.run import TOPICS, TrainConfig

__all__ = ["TOPICS", "TrainConfig"]
