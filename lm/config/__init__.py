"""A run's YAML file and command line in, one checked `Config` out, without torch.

To learn what a key means, start in `schema/`, which has a file for each section. `reader.py` reads
a configuration and collects all of its mistakes. `yaml_reader.py` parses YAML with line numbers,
and `scalars.py` writes single values. `keys.py` lists all keys with types and help, `complaints.py`
words the mistakes, and `describe.py` prints a configuration. `suggestions.py` says what to write
for an unknown key. `other_names.py` is the table of the keys of other programs, and
`translations.py` says how their values are written here.

The base checkpoint of a fine-tuning is not known here: commands call `lm.commands.load_config`.
"""
