"""The public ops. Each file has the op's reference in plain torch, its checks, and the choice of form by ``impl=``.

The method: mimic_loss (every equation of the loss; _fused_mimic_loss makes its C++ and Triton forms a torch op),
linear_mimic_loss (heads and loss, a chunk of the logits at a time; _chunked_mimic_loss makes it a torch op, with
_head_products and _mimic_loss_by_classes), class_parallel (the same with the classes split over processes;
_process_group is what they send), branch_mask (which branches take part in a step).
The network on a CPU: conv3x3, conv2d (_convolution is what both share), batch_norm_act, shortcut.
Beside them: shared_norm (batch norm over several processes), match_ranks (ranking people), philox (random numbers
without state), _extension (loads the C++).
"""
