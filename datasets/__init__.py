"""Loading and batching of the course's data. (Hugging Face's package of the same name is not used in this project, but
can stand beside it: namesake.py.)"""

import namesake
from datasets.batching import LengthGroupedBatches, pad
from datasets.paraphrase import (
    ParaphraseDetectionDataset,
    ParaphraseDetectionTestDataset,
    load_paraphrase_data,
)
from datasets.sentiment import SentimentDataset, SentimentTestDataset, load_sentiment_data
from datasets.sonnets import SonnetsDataset, load_sonnets
from datasets.tokenizer import load_tokenizer

__all__ = [
    "LengthGroupedBatches",
    "ParaphraseDetectionDataset",
    "ParaphraseDetectionTestDataset",
    "SentimentDataset",
    "SentimentTestDataset",
    "SonnetsDataset",
    "load_paraphrase_data",
    "load_sentiment_data",
    "load_sonnets",
    "load_tokenizer",
    "pad",
]

namesake.join()
