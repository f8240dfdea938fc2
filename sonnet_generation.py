"""Task 1: fine-tune GPT-2 on sonnets, complete held-out ones from their first three lines, score them.

python sonnet_generation.py --lora                        train, generate, score
python sonnet_generation.py --checkpoint runs/sonnet-lora generate again, with other --temperature or --top_p
"""

from cli.flags import parse_flags
from cli.script import run_script, start
from config import SonnetSettings

if __name__ == "__main__":  # before the heavy imports, so that --help and typing errors answer at once
    FLAGS = start(parse_flags, SonnetSettings)

import json
import random
import time

from tqdm import tqdm

from cli.script import say
from cli.tables import format_table, plus_minus
from datasets import LengthGroupedBatches, SonnetsDataset, load_sonnets
from datasets.batching import some_rows
from datasets.sonnets import PROMPT_LINES, check_unfinished, check_whole, format_sonnets, head_of, warn_of_known
from decoding.prosody import load_pronouncing, measure_form
from decoding.template import Lexicon, format_templates, load_tagger, load_templates
from decoding.writer import SonnetWriter
from errors import UserError, check
from evaluation import absurdity, mean_and_deviation, perplexity, score_sonnets, sonnet_floors
from files import check_writable, write_text
from handin.checks import check_sonnets, say_faults
from models.sonnet_gpt import SonnetGPT, language_model_loss, summed_loss
from modules.packed import has_int8
from training.assembly import assemble, load_trained, open_session
from training.inputs import content_hash
from training.loop import to_device

TASK = "sonnet_generation"
KEPT_ASIDE = 0.1  # share of the training sonnets that stands in for a missing gold file


def main(settings, given):
    session = open_session(TASK, settings, given, "sonnet")
    run, settings, accelerator = session.run, session.settings, session.accelerator
    data = settings.data
    for path in (data.sonnet_out, data.sonnet_dev_out):
        check_writable(path)
    check_decoding(settings.decoding, accelerator.device)
    training, gold = load_training_and_gold(data, run.seed, required="gold_sonnet_path" in given)
    for sonnets, path in ((training, data.sonnet_path), (gold, data.gold_sonnet_path)):
        check_whole(sonnets, path)
    prompts = load_sonnets(data.held_out_sonnet_path)
    check_unfinished(prompts, data.held_out_sonnet_path)
    for sonnets, path in ((gold, data.gold_sonnet_path), (prompts, data.held_out_sonnet_path)):
        warn_of_known(sonnets, training, path)
    training = some_rows(training, settings.training.train_rows, run.seed)
    say(f"{len(training)} training sonnets, {len(gold)} dev sonnets, {len(prompts)} prompts to complete")

    tuned = assemble(settings)
    model, context = SonnetGPT(tuned.gpt2), tuned.gpt2.context
    check_prompts(prompts, tuned.tokenizer, context)
    dev = SonnetsDataset(gold, tuned.tokenizer, context)
    dev_batches = LengthGroupedBatches(dev, settings.inference.eval_batch_size)
    batches = session.batches(SonnetsDataset(training, tuned.tokenizer, context))
    inputs = {
        "training sonnets": content_hash(training, data.sonnet_path),
        "dev sonnets": content_hash(gold, data.gold_sonnet_path),
    }
    session.begin(tuned.fingerprint, inputs, batches)
    if not settings.run.checkpoint:
        loss_fn = tuned.loss(language_model_loss)
        train(session.loop(model, tuned.after_step), batches, dev_batches, loss_fn)
    figures = load_trained(session, model)
    if settings.inference.merge:
        tuned.merge()
    if accelerator.is_main_process:
        with accelerator.autocast():
            loss = held_out_loss(model, dev_batches, accelerator.device)
        figures |= {"dev loss": f"{loss:.4f} nats a token", "dev perplexity": f"{perplexity(loss):.2f}"}
        say("\n" + format_table(figures, "Sonnet generation"), end="")
        tuned.cast_for_prediction(settings.training.precision)
        writer = make_writer(tuned, training, settings, run)
        if settings.decoding.int8:
            rounded = held_out_loss(model, dev_batches, accelerator.device)
            say(f"dev loss with layers in 8 bits: {rounded:.4f} nats a token, {rounded - loss:+.4f}")
        scores = predict_and_score(writer, prompts, gold, training, settings, run)
        run.report({"figures": figures, "scores": scores})


def check_decoding(options, device):
    """Raise UserError for what templates would miss, and 8 bits: now, not after hours of training."""
    if options.int8:
        known = device.type == "cpu" and has_int8()
        check(known, "--int8 needs a CPU with torch's 8-bit products (FBGEMM): leave it out here")
    if options.decode == "template":
        load_tagger()
        if options.templates:
            load_templates(options.templates)


def load_training_and_gold(data, seed, required):
    """Training sonnets and the whole dev sonnets: the gold file or, where it is missing, some of the former."""
    training = load_sonnets(data.sonnet_path)
    try:
        return training, load_sonnets(data.gold_sonnet_path)
    except UserError as error:
        if required or not isinstance(error.__cause__, FileNotFoundError):
            raise
    check(
        len(training) > 1,
        f"{data.sonnet_path} holds one sonnet only: one must be kept aside for dev, so two are needed",
    )
    random.Random(seed).shuffle(training)
    aside = max(1, round(KEPT_ASIDE * len(training)))
    say(f"{data.gold_sonnet_path} does not exist: {aside} of {len(training)} training sonnets are kept aside for dev")
    return training[aside:], training[:aside]


def check_prompts(prompts, tokenizer, context):
    for prompt in prompts:
        length = len(tokenizer.encode(prompt).ids) + 1
        first_line = prompt.splitlines()[0]
        check(
            length < context,
            f'the prompt "{first_line}" has {length} tokens, the model\'s context {context}: shorten it',
        )


def train(loop, batches, dev_batches, loss_fn):
    def evaluate(model):
        loss = held_out_loss(model, dev_batches, loop.accelerator.device)
        if line := absurdity(loss, model.gpt.config.vocab_size):
            say(line)
        return {"score": -loss, "dev loss": loss, "dev perplexity": perplexity(loss)}

    loop.fit(batches, loss_fn, evaluate)


def held_out_loss(model, batches, device):
    """Mean loss in nats a token."""
    loss, count = summed_loss(model, (to_device(batch, device) for batch in batches))
    return loss / count


def make_writer(tuned, training, settings, run):
    """The SonnetWriter that the settings ask for; for templates, these are read, or taken from the training sonnets."""
    options, lexicon, templates = settings.decoding, None, None
    if options.decode == "template":
        lexicon = Lexicon(training, *load_tagger())
        templates = lexicon.templates[options.template_tags]
        if options.templates:
            templates = load_templates(options.templates)
        write_text(run.output("templates.txt"), format_templates(templates))
        say(f"{sum(templates.values())} lines, {len(templates)} templates: {run.output('templates.txt')}")
    batch_size = settings.inference.eval_batch_size
    head = tuned.pack_for_writing(batch_size, options.int8)
    return SonnetWriter(tuned.gpt2, tuned.tokenizer, options, batch_size, lexicon, templates, head)


def predict_and_score(writer, prompts, gold, training, settings, run):
    """Write both prediction files and print the scores, which are returned: {row: {figure: (mean, deviation)}}."""
    data, seed = settings.data, settings.training.seed
    with tqdm(desc="writing sonnets", unit="token", disable=None) as bar:
        candidates = writer.write(prompts, seed, bar.update)
    write_text(data.sonnet_out, format_sonnets([best.text for best, *_ in candidates]))
    if len(candidates[0]) > 1:
        rows = [{"prompt": place, **c._asdict()} for place, group in enumerate(candidates) for c in group]
        write_text(run.output("candidates.jsonl"), "".join(json.dumps(row) + "\n" for row in rows))
    seeds = range(seed, seed + (data.score_seeds if settings.decoding.draws else 1))
    heads, began = [head_of(sonnet) for sonnet in gold], time.perf_counter()
    with tqdm(desc="scoring on dev", unit="token", disable=None) as bar:
        dev = [[best.text for best, *_ in writer.write(heads, seed, bar.update)] for seed in seeds]
    run.facts["seconds a sonnet"] = (time.perf_counter() - began) / (len(gold) * len(seeds))
    write_text(data.sonnet_dev_out, format_sonnets(dev[0]))
    say_faults(check_sonnets, data.sonnet_out, prompts)
    say_faults(check_sonnets, data.sonnet_dev_out, heads)

    name = f"model, {len(seeds)} seed{'s' if len(seeds) > 1 else ''}"
    rows = {name: mean_and_deviation([score_sonnets(texts, gold) for texts in dev])}
    rows |= {f"floor: {name}": values for name, values in sonnet_floors(gold, training).items()}
    say(f"\nScores on {len(gold)} dev sonnets, mean +- deviation over seeds ({data.sonnet_dev_out}: the first seed's)")
    print_scores(rows)
    if settings.decoding.form == "sonnet" or settings.decoding.decode == "template":
        report_form(rows, name, dev, gold)
    say(f"\n{data.sonnet_out}: {len(candidates)} sonnets; the first one:\n\n{candidates[0][0].text}")
    return rows


def report_form(rows, name, dev, gold):
    """Print syllables and rhymes, and add them to the rows."""
    try:
        pronouncing = load_pronouncing()
    except UserError as error:
        say(f"\n{error}")
        return
    measured = [measure_form(texts, PROMPT_LINES, pronouncing) for texts in dev]
    form = {
        name: mean_and_deviation(measured),
        "gold": mean_and_deviation([measure_form(gold, PROMPT_LINES, pronouncing)]),
    }
    say("\nForm of lines 4 to 14 (rhymes: of the paired line ends whose words are known)")
    print_scores(form)
    for row, values in form.items():
        rows[row] = rows.get(row, {}) | values


def print_scores(rows):
    """rows: {name: {figure: (mean, deviation)}}; the figures of the first row are the columns."""
    cells = {name: {figure: plus_minus(value) for figure, value in row.items()} for name, row in rows.items()}
    say(format_table(cells), end="")


if __name__ == "__main__":
    run_script(main, *FLAGS)
