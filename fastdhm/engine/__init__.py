"""A run, from its config to ``network.safetensors``. To follow ``fastdhm train``, read in this order:

1. ``cli/train.py``: the recipe, a file and the flags become a config.
2. ``train.py``, ``train()``: the order of all that follows.
3. ``settle.py``: the config is made definite, and the run's folder is held. ``device.py``: on what it computes.
4. ``build.py``: the images are opened (``data/open.py``), and the network is built (``models/``).
5. ``run.py``: what the run is made of, and what a checkpoint restores. ``fastdhm/methods.py``: the method's weights.
6. ``plan.py``: a person is told what comes.
7. ``train.py``, ``fit()``: the loop. ``timer.py`` feeds it from the loader; ``compiling.py`` gives it a compiled step.
8. ``step.py``: a batch is prepared, the branches are drawn, the loss (``ops/mimic_loss.py``) is differentiated, and the
   optimizer (``optim/optimizer.py``) steps.
9. ``saved/record.py``: numbers leave the device. ``validation.py``, ``evaluate.py``: the errors after an epoch.
10. ``saved/checkpoint.py``: checkpoints, and at the end the stripped network. ``report.py``: a person is told the end.

Beside it: fast (the same network, faster), display (the bar), gradients (how far branches agree), reid (ranks people,
and prints its table); distributed, shared_gradients and sums (many processes are one run); optimizer, hours (its end by
the clock or by patience) and longer (goes on after its end); labels (mixed, weighted) and teacher; profile; predictor
(answers for new images).
"""
