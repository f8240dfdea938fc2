"""From sentences to their translations, greedily or by beam search."""

from datasets.batching import pad, run_in_parts
from decoding.beam import beam_search
from decoding.generation import generate
from decoding.rules import Rules
from decoding.sampling import row_streams
from decoding.steps import TransformerSteps

EXTRA_TOKENS = 50  # a translation may be so much longer than its source, as in Vaswani et al. 2017, section 6.1


class Translator:
    """settings: DecodingSettings, decode "greedy" or "beam". end: the token that begins and ends a text.

    batch_size: rows (sentences times beams) at a time.
    """

    def __init__(self, model, tokenizer, settings, end, batch_size):
        self.model, self.tokenizer, self.end, self.batch_size = model, tokenizer, end, batch_size
        self.settings = settings

    def translate(self, sources, progress=None):
        """The translation of every source (lists of token ids), in order. progress: called with sentences done."""
        order = sorted(range(len(sources)), key=lambda place: -len(sources[place]))  # little padding
        beams = self.settings.beams if self.settings.decode == "beam" else 1
        size, texts = max(1, self.batch_size // beams), {}
        for start in range(0, len(order), size):
            places = order[start : start + size]
            parts = run_in_parts(self._translated, [sources[place] for place in places])
            texts |= zip(places, (text for part in parts for text in part), strict=True)
            if progress is not None:
                progress(len(places))
        return [texts[place] for place in range(len(sources))]

    def _translated(self, sources):
        device = self.model.output_embedding.weight.device
        source_ids, source_mask = (x.to(device) for x in pad(sources, self.end))
        limits = [len(source) + EXTRA_TOKENS for source in sources]  # each its own: the batch must not matter
        rules = Rules(self.settings, self.end, stop=lambda index, ids: len(ids) >= limits[index])
        steps = TransformerSteps(self.model, source_ids, source_mask, self.end, max(limits))
        prompts = [[]] * len(limits)
        if self.settings.decode == "beam":
            found = [texts[0][0] for texts in beam_search(steps, prompts, rules)]
        else:
            found = generate(steps, prompts, rules, row_streams(0, range(len(prompts))))
        return [" ".join(self.tokenizer.decode(ids).split()) for ids in found]
