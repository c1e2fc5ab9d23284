"""How the shipped tiny model is made: `tokenizer`, `model` (geometry and folder), `pretrain`.

`alphadrive model tiny --out DIR` runs it all. Needs torch and transformers; nothing else in the
project imports this package.
"""
