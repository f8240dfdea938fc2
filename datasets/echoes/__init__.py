"""Text that comes back in other words: what the embedded model is pre-trained on besides books.

python -m datasets.echoes --help
"""
