"""Checks that a checkpoint returns its weights, and loads the same ones again."""

import weakref


def check_loaded_again(checkpoint) -> None:
    import torch

    before = {name: tensor.clone() for name, tensor in checkpoint.model.state_dict().items()}
    model = weakref.ref(checkpoint.model)
    checkpoint.release()
    assert model() is None
    after = checkpoint.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not checkpoint.model.training
    assert checkpoint.model.config._attn_implementation == "eager"
    assert checkpoint.model.proj_out.weight is checkpoint.model.model.decoder.embed_tokens.weight
