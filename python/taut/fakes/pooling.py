"""Shapes and dtypes of what the pooling ops give."""


def pool(x, cu_seqlens, mode, normalize):
    return x.new_empty((cu_seqlens.shape[0] - 1, x.shape[1]))


def pool_backward(grad_out, x, cu_seqlens, mode, normalize):
    return x.new_empty(x.shape)
