"""From sonnet prompts to whole sonnets, with any of the decoders."""

import dataclasses
from typing import NamedTuple

from config import END_OF_TEXT
from datasets.batching import run_in_parts
from datasets.sonnets import SONNET_LINES, lines_of, verses
from decoding.beam import beam_search
from decoding.form import LineTokens, SonnetForm
from decoding.generation import generate
from decoding.reranking import mean_chrf_against_others, mean_log_probabilities
from decoding.rules import Rules
from decoding.sampling import row_streams
from decoding.steps import GPT2Steps
from decoding.template_constraint import TemplateConstraint, TemplateWords


class Candidate(NamedTuple):
    """A whole sonnet. score: what it was chosen by (mean log-probability, beam score or mean chrF), if by anything."""

    text: str
    score: float | None


class SonnetWriter:
    """Completes prompts (sonnets without their last lines).

    settings: DecodingSettings. batch_size: rows at a time. lexicon and templates: for settings.decode == "template",
    a decoding.template.Lexicon and {template: weight}. head: as from modules.packed.pack, of a gpt2 that was packed.
    """

    def __init__(self, gpt2, tokenizer, settings, batch_size, lexicon=None, templates=None, head=None):
        self.gpt2, self.head, self.tokenizer, self.batch_size = gpt2, head, tokenizer, batch_size
        self.settings = dataclasses.replace(settings, temperature=0.0) if settings.decode == "greedy" else settings
        self.lexicon, self.templates = lexicon, templates
        self.end_of_text = tokenizer.token_to_id(END_OF_TEXT)
        self.tables = self._constraint_tables()
        self.newline_tokens = {}  # token: whether its text holds a new line

    def write(self, prompts, seed, progress=None):
        """For every prompt its candidates, the best first: a list of lists of Candidates.

        progress: called with the number of new tokens after each step.
        """
        if self.settings.decode == "beam":
            return self._beams(prompts, progress)
        samples, mbr = self.settings.samples, self.settings.decode == "mbr"
        rows = [(place, place * samples + number) for place in range(len(prompts)) for number in range(samples)]
        written = []
        for start in range(0, len(rows), self.batch_size):
            parts = run_in_parts(
                lambda part: self._sampled([prompts[place] for place, _ in part], seed, [s for _, s in part], progress),
                rows[start : start + self.batch_size],
            )
            written += [candidate for part in parts for candidate in part]
        groups = [written[start : start + samples] for start in range(0, len(written), samples)]
        if mbr:
            groups = [self._scored_by_chrf(prompt, group) for prompt, group in zip(prompts, groups, strict=True)]
        return [sorted(group, key=lambda candidate: -candidate.score) if samples > 1 else group for group in groups]

    def _sampled(self, prompts, seed, streams, progress):
        """One Candidate a prompt, all in one batch; scored where one of several will be chosen by it."""
        ids = [self._encode(prompt) for prompt in prompts]
        rules = self._rules(prompts, [f"{seed}-{stream}" for stream in streams])
        new_ids = generate(self._steps(ids), ids, rules, row_streams(seed, streams), progress)
        scores = [None] * len(prompts)
        if self.settings.samples > 1 and self.settings.decode != "mbr":
            scores = mean_log_probabilities(self.gpt2, ids, new_ids)
        return [Candidate(*pair) for pair in zip(map(self._whole, prompts, new_ids), scores, strict=True)]

    def _beams(self, prompts, progress):
        size, groups = max(1, self.batch_size // self.settings.beams), []
        for start in range(0, len(prompts), size):
            parts = run_in_parts(lambda part: self._searched(part, progress), prompts[start : start + size])
            groups += [group for part in parts for group in part]
        return groups

    def _searched(self, prompts, progress):
        """For every prompt the Candidates of its beams, all in one batch."""
        ids = [self._encode(prompt) for prompt in prompts]
        found = beam_search(self._steps(ids), ids, self._rules(prompts), progress)
        return [
            [Candidate(self._whole(prompt, ids), score) for ids, score in texts]
            for prompt, texts in zip(prompts, found, strict=True)
        ]

    def _steps(self, ids):
        return GPT2Steps(self.gpt2, ids, self.settings.max_new_tokens, self.head)

    def _encode(self, prompt):
        return self.tokenizer.encode(f"{prompt}\n").ids  # a new line: line 4 begins

    def _whole(self, prompt, new_ids):
        return tidy(f"{prompt}\n{self.tokenizer.decode(new_ids)}")

    def _scored_by_chrf(self, prompt, group):
        """What all share, the prompt, tells nothing about a sample."""
        own = [text.removeprefix(tidy(prompt)) for text, _ in group]
        return [
            Candidate(candidate.text, score)
            for candidate, score in zip(group, mean_chrf_against_others(own), strict=True)
        ]

    def _rules(self, prompts, seeds=None):
        """What may come and what ends a text, for these prompts. seeds: what templates are drawn with."""
        lines, constraint = [lines_to_write(prompt) for prompt in prompts], None
        if isinstance(self.tables, TemplateWords):
            constraint = TemplateConstraint(self.tables, lines, seeds)
        elif isinstance(self.tables, LineTokens):
            constraint = SonnetForm(self.tables, lines)
        return Rules(self.settings, self.end_of_text, self._stop(lines), constraint)

    def _constraint_tables(self):
        """What the constraints of all batches share, or None where there is none."""
        size = self.gpt2.config.vocab_size
        if self.settings.decode == "template":
            return TemplateWords(self.tokenizer, size, self.end_of_text, self.lexicon, self.templates)
        return LineTokens(self.tokenizer, size, self.end_of_text) if self.settings.form == "sonnet" else None

    def _stop(self, lines):
        """stop(index, ids): whether line 14 is complete. lines: how many each prompt lacks."""

        def stop(index, ids):
            if ids[-1] not in self.newline_tokens:
                self.newline_tokens[ids[-1]] = "\n" in self.tokenizer.decode([ids[-1]])
            return self.newline_tokens[ids[-1]] and complete_lines(self.tokenizer.decode(ids)) >= lines[index]

        return stop


def lines_to_write(prompt):
    """How many lines a prompt lacks; at least one is always written."""
    return max(1, SONNET_LINES - len(lines_of(prompt)))


def complete_lines(text):
    """How many lines of the text are not blank and ended by a new line."""
    return len(lines_of(text[: text.rindex("\n")])) if "\n" in text else 0


def tidy(text):
    """At most 14 lines, none blank or nothing but a number, no white space at their ends."""
    return "\n".join(verses(text)[:SONNET_LINES])
