"""The reports on runs: one run, two runs, an ablation, a fine-tuning.

Start with run.py, the page of tools/report.py. Each run_*.py makes one part of that page.
comparison.py compares two runs for tools/compare.py, and comparison_views.py shows the result.
ablation.py measures a difference over several seeds for tools/ablate.py, and pairing.py says what
the runs of a seed have in common. finetune.py writes finetune.py's closing report from the numbers
of finetune_figures.py.

Reports read a run's folder through lm/runs. Measurements with a model are in lm/evaluation; tables,
charts and pages are in lm/display.
"""
