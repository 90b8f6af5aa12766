"""The RWKV-7 network in terms of the operations, and the models that run it."""
