"""Batches of images as views whose strides an op has to follow, whatever their order, gaps and repetitions."""

VIEWS = {
    "nchw": lambda x: x.contiguous(),
    "transposed": lambda x: x.transpose(2, 3),
    "sliced": lambda x: x[:, :, ::2, 1:],
    "expanded": lambda x: x[:1].expand(4, -1, -1, -1),
}
