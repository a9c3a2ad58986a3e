"""Shapes and dtypes of what the activation ops give."""


def bias_activation(x, bias, activation):
    return x.new_empty(x.shape)


def bias_activation_backward(grad_out, x, bias, activation):
    return x.new_empty(x.shape), x.new_empty((x.shape[1],))


def bias_glu(x, bias, activation):
    return x.new_empty((x.shape[0], x.shape[1] // 2))


bias_glu_backward = bias_activation_backward
