"""From a prompt to text.

Start with sampling.py: the filters, the draw and the decode loop. continuation.py turns its tokens
into text with stop strings; prompt.py reads the prompt; chat.py and terminal.py hold a
conversation. load.py is the door for scripts: `from lm import load`. The KV cache is in model.py,
chat templates are in lm/documents/templates.py.
"""
