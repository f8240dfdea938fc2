"""Task 1: fine-tune GPT-2 on sonnets, complete held-out ones from their first three lines, score them.

python sonnet_generation.py --lora                        train, generate, score
python sonnet_generation.py --checkpoint runs/sonnet-lora generate again, with other --temperature or --top_p
"""

from config import SonnetSettings, parse_flags, run_script

if __name__ == "__main__":  # before the heavy imports, so that --help and typing errors answer at once
    FLAGS = run_script(parse_flags, SonnetSettings)

import random

import torch
from accelerate.utils import broadcast_object_list
from tqdm import tqdm

from checkpoint import open_run
from config import END_OF_TEXT, UserError, check
from datasets import LengthGroupedBatches, SonnetsDataset, load_sonnets
from datasets.files import check_writable, write_text
from decoding import generate
from evaluation import (
    SONNET_LINES,
    head_of,
    lines_of,
    mean_and_deviation,
    perplexity,
    score_sonnets,
    sonnet_floors,
)
from models.sonnet_gpt import SonnetGPT, language_model_loss, summed_loss
from modules.tuning import after_step, chosen_methods, default_learning_rate, merge, with_penalties
from training import fit, load_backbone, load_trained, make_accelerator, print_table, steps_an_epoch, to_device

TASK = "sonnet_generation"
KEPT_ASIDE = 0.1  # share of the training sonnets that stands in for a missing gold file


def main(settings, given):
    accelerator = make_accelerator(settings.training)
    name = "-".join(["sonnet", *(chosen_methods(settings) or ["full"])])
    run, settings = broadcast_object_list([open_run(TASK, name, settings, given)])[0]
    data = settings.data
    for path in (data.sonnet_out, data.sonnet_dev_out):
        check_writable(path)
    training, gold = load_training_and_gold(data, settings.training.seed, required="gold_sonnet_path" in given)
    prompts = load_sonnets(data.held_out_sonnet_path)
    accelerator.print(f"{len(training)} training sonnets, {len(gold)} dev sonnets, {len(prompts)} prompts to complete")

    gpt2, tokenizer, base = load_backbone(settings, accelerator)
    model = SonnetGPT(gpt2)
    context = gpt2.context
    check_prompts(prompts, tokenizer, context)
    dev_batches = LengthGroupedBatches(SonnetsDataset(gold, tokenizer, context), settings.inference.eval_batch_size)
    dataset = SonnetsDataset(training, tokenizer, context)
    if accelerator.is_main_process:
        run.begin(TASK, settings, base)
    if settings.run.checkpoint:
        figures = load_trained(model, run, accelerator)
    else:
        figures = train(model, dataset, dev_batches, settings, run, accelerator)
    if settings.inference.merge:
        merge(gpt2, chosen_methods(settings))
    if accelerator.is_main_process:
        with accelerator.autocast():
            loss = held_out_loss(model, dev_batches, accelerator.device)
        figures |= {"dev loss": f"{loss:.4f} nats a token", "dev perplexity": f"{perplexity(loss):.2f}"}
        if accelerator.mixed_precision == "bf16":
            gpt2.to(torch.bfloat16)  # nothing is trained any more: no weight need be cast at every token
        print_table("Sonnet generation", figures)
        scores = predict_and_score(gpt2, tokenizer, prompts, gold, training, settings)
        run.report({"figures": figures, "scores": scores})


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
    print(f"{data.gold_sonnet_path} does not exist: {aside} of {len(training)} training sonnets are kept aside for dev")
    return training[aside:], training[:aside]


def check_prompts(prompts, tokenizer, context):
    for prompt in prompts:
        length = len(tokenizer.encode(prompt).ids) + 1
        first_line = prompt.splitlines()[0]
        check(
            length < context,
            f'the prompt "{first_line}" has {length} tokens, the model\'s context {context}: shorten it',
        )


def train(model, dataset, dev_batches, settings, run, accelerator):
    options, methods = settings.training, chosen_methods(settings)
    options.lr = options.lr or default_learning_rate(methods)
    rank, world = accelerator.process_index, accelerator.num_processes
    batches = LengthGroupedBatches(dataset, options.batch_size, True, options.seed, rank, world)

    def evaluate(model):
        loss = held_out_loss(model, dev_batches, accelerator.device)
        return {"score": -loss, "dev loss": loss, "dev perplexity": perplexity(loss)}

    loss_fn = with_penalties(language_model_loss, model.gpt, methods)
    hook = after_step(model.gpt, methods, options.epochs * steps_an_epoch(batches, options))
    return fit(model, batches, loss_fn, evaluate, options, run, accelerator, hook)


def held_out_loss(model, batches, device):
    """Mean loss in nats a token."""
    loss, count = summed_loss(model, (to_device(batch, device) for batch in batches))
    return loss / count


def predict_and_score(gpt2, tokenizer, prompts, gold, training, settings):
    """Write both prediction files and print the scores, which are returned: {row: {figure: (mean, deviation)}}."""
    data, seed = settings.data, settings.training.seed
    completed = complete(gpt2, tokenizer, prompts, settings, [seed], "writing sonnets")[0]
    write_text(data.sonnet_out, format_sonnets(completed))
    seeds = range(seed, seed + data.score_seeds)
    dev = complete(gpt2, tokenizer, [head_of(sonnet) for sonnet in gold], settings, seeds, "scoring on dev")
    write_text(data.sonnet_dev_out, format_sonnets(dev[0]))

    rows = {f"model, {len(seeds)} seeds": mean_and_deviation([score_sonnets(texts, gold) for texts in dev])}
    rows |= {f"floor: {name}": values for name, values in sonnet_floors(gold, training).items()}
    columns = ("chrF whole", "chrF continuation", "14 lines")
    print(
        f"\nScores on {len(gold)} dev sonnets, mean +- deviation over seeds ({data.sonnet_dev_out}: the first seed's)"
    )
    print(f"{'':<28}" + "".join(f"{column:>20}" for column in columns))
    for name, values in rows.items():
        cells = ["{:.2f} +- {:.2f}".format(*values[column]) if column in values else "-" for column in columns]
        print(f"{name:<28}" + "".join(f"{cell:>20}" for cell in cells))
    print(f"\n{data.sonnet_out}: {len(completed)} sonnets; the first one:\n\n{completed[0]}")
    return rows


def complete(gpt2, tokenizer, prompts, settings, seeds, description):
    """The prompts' completed sonnets, once for each seed: a list of lists of strings."""
    prompt_ids = [tokenizer.encode(f"{prompt}\n").ids for prompt in prompts]  # a new line: line 4 begins
    lines_to_write = [SONNET_LINES - len(lines_of(prompt)) for prompt in prompts]
    newline_tokens, size, results = {}, settings.inference.eval_batch_size, []

    def continued(rows, seed, bar):
        def stop(index, ids):
            if ids[-1] not in newline_tokens:
                newline_tokens[ids[-1]] = "\n" in tokenizer.decode([ids[-1]])
            return newline_tokens[ids[-1]] and complete_lines(tokenizer.decode(ids)) >= lines_to_write[rows[index]]

        end = tokenizer.token_to_id(END_OF_TEXT)
        chosen = [prompt_ids[row] for row in rows]
        new_ids = generate(gpt2, chosen, settings.decoding, seed, end, stop, rows=rows, progress=bar.update)
        return [tidy(f"{prompts[row]}\n{tokenizer.decode(ids)}") for row, ids in zip(rows, new_ids, strict=True)]

    with tqdm(desc=description, unit="token", disable=None) as bar:
        for seed in seeds:
            chunks = [range(i, min(i + size, len(prompts))) for i in range(0, len(prompts), size)]
            results.append([text for rows in chunks for text in continued(rows, seed, bar)])
    return results


def complete_lines(text):
    """How many lines of the text are not blank and ended by a new line."""
    return len(lines_of(text[: text.rindex("\n")])) if "\n" in text else 0


def tidy(text):
    """At most 14 lines, none blank, no white space at their ends."""
    return "\n".join(line.rstrip() for line in lines_of(text)[:SONNET_LINES])


def format_sonnets(sonnets):
    """The course's hand-in format."""
    return "--Generated Sonnets-- \n\n" + "".join(f"\n{index}\n{sonnet}\n\n" for index, sonnet in enumerate(sonnets))


if __name__ == "__main__":
    run_script(main, *FLAGS)
