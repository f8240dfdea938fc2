"""More training pairs from those there are: every question said in another way, the label kept.

A pair is only used if both of its questions have changed (back-translation), or one of them at least (EDA).
"""

import random
import re
from collections import Counter

from cli.script import say
from datasets import back_translation, eda
from datasets.paraphrase import preprocess_string
from errors import check


def augment(rows, settings, seed, device="cpu"):
    """(new rows, counts) for training rows (sentence1, sentence2, label, id).

    settings: AugmentationSettings. counts: {method: {"made": n, "dropped": n}}. The same seed gives the same rows.
    Raises UserError where a package, WordNet or a model is missing, or there are fewer rows than --augment_count.
    """
    new_rows, counts = [], {}
    rows = drawn(rows, settings.augment_count, seed)
    for method in settings.augment:
        made, dropped = METHODS[method](rows, settings, seed, device)
        new_rows += made
        counts[method] = {"made": len(made), "dropped": dropped}
    return new_rows, counts


def drawn(rows, count, seed):
    """So many of the rows, drawn at random, in the order that they have; all of them for None. Raises UserError."""
    if count is None:
        return rows
    check(count <= len(rows), f"--augment_count {count}: there are {len(rows)} training pairs; give a smaller number")
    say(f"augmentation: {count} of {len(rows)} training pairs drawn (seed {seed})")
    places = random.Random(f"{seed}-augment").sample(range(len(rows)), count)
    return [rows[place] for place in sorted(places)]


def check_augmentation(settings):
    """Raise UserError for what `augment` would miss, before a run is begun."""
    if "eda" in settings.augment:
        synonyms_for(settings)
    if "back_translation" in settings.augment:
        back_translation.check_packages()
        for name in (settings.bt_forward, settings.bt_backward):
            back_translation.MarianTranslator(name)  # fetches the model, if need be


def synonyms_for(settings):
    """WordNet's synonyms, or None where no chosen operation looks any up. Raises UserError."""
    wanted = not eda.NEED_SYNONYMS.isdisjoint(settings.eda_operations)
    return eda.load_synonyms(settings.wordnet) if wanted else None


def by_eda(rows, settings, seed, device):
    synonyms, made, dropped = synonyms_for(settings), [], 0
    options = (settings.eda_alpha, settings.eda_operations)
    for first, second, label, identifier in rows:
        for copy in range(1, settings.eda_copies + 1):
            draw = random.Random(f"{seed}-{identifier}-{copy}")
            pair = tuple(eda.change(text, draw, synonyms, *options) for text in (first, second))
            if pair == (first, second):
                dropped += 1
            else:
                made.append((*pair, label, f"{identifier}-eda{copy}"))
    return made, dropped


def by_back_translation(rows, settings, seed, device):
    forward, backward = (
        back_translation.MarianTranslator(name, device, settings.bt_beams)
        for name in (settings.bt_forward, settings.bt_backward)
    )
    cache = back_translation.TranslationCache(settings.bt_cache)
    return back_translated(rows, forward, backward, cache, settings.bt_batch_size)


def back_translated(rows, forward, backward, cache, batch_size):
    """(new rows, number dropped): every pair by way of another language, where both questions survive that."""
    texts = [natural(text) for row in rows for text in row[:2]]
    back = back_translation.back_translate(texts, forward, backward, cache, batch_size)
    made, dropped = [], 0
    for first, second, label, identifier in rows:
        pair = [preprocess_string(back[natural(text)]) for text in (first, second)]
        if all(differs(new, old) for new, old in zip(pair, (first, second), strict=True)):
            made.append((*pair, label, f"{identifier}-bt"))
        else:
            dropped += 1
    return made, dropped


METHODS = {"eda": by_eda, "back_translation": by_back_translation}


def natural(text):
    """The cleaned text as people write it, which is what translators know: no space before marks, "I" and the
    beginnings of sentences as capitals. Names stay small: which words are names is lost."""
    text = re.sub(r" ([.?,'])", r"\1", text)
    text = re.sub(r"\bi\b", "I", text)
    return re.sub(r"(^|[.?!] )([a-z])", lambda found: found[0].upper(), text)


def differs(new, old):
    """Whether a text is not empty and, case and space aside, not the other one."""
    return bool(new.strip()) and "".join(new.lower().split()) != "".join(old.lower().split())


def describe(rows, counts):
    """One line for each method."""
    labels = Counter(row[2] for row in rows)
    lines = [f"augmentation, {name}: {c['made']} pairs made, {c['dropped']} dropped" for name, c in counts.items()]
    return "\n".join([*lines, f"augmentation: {len(rows)} more training pairs, {labels[1]} of them paraphrases"])
