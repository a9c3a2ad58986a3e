import torch
from taut.triton_kernels import norm
def call_norm(dt):
    x,r=[torch.randn(65,384).to(dt) for _ in range(2)]
    b,w,n=torch.randn(3,384).to(dt)
    m=torch.randn(65)
    norm.layer_norm(x,r,b,w,n,1e-5,True)
    norm.layer_norm(x,None,b,None,n,1e-5,False)
    norm.layer_norm_backward(x,None,x,r,b,w,m,m)
CALLS=[lambda: call_norm(torch.bfloat16), lambda: call_norm(torch.float32)]
