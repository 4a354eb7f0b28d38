"""Operations on a decoder from outside.

Start with lora.py: low-rank adapters, and how they are merged. four_bit.py packs frozen weights
(QLoRA), fsdp.py shards a model over processes, compilation.py tries torch.compile. model.py knows
none of them. Checkpoints of adapters and of shards are in lm/checkpoints.
"""
