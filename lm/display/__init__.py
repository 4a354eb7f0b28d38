"""Tables, charts, pages and learning curves: how results look.

Start with tables.py, which writes one table for the terminal, for Markdown and for HTML. html.py
escapes all text and makes the page around it, and charts.py draws line charts for such pages.
curves.py draws curves.png and the blocks in the terminal. style.py holds the colours and
matplotlib's settings for all of them.

The content of reports is in lm/reports, that of rankings in lm/ranking.
"""
