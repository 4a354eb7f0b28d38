"""Leaves: one job per file, each usable and tested alone. They import each other sparingly, and
never the cores or the commands.
"""
