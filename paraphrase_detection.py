"""Task 2: fine-tune GPT-2 to tell whether two questions ask the same; write the hand-in files for dev and test.

python paraphrase_detection.py --lora                            train, evaluate, predict
python paraphrase_detection.py --checkpoint runs/paraphrase-lora predict again, for instance another --para_test
"""

from cli.flags import parse_flags
from cli.script import run_script, start
from config import ParaphraseSettings

if __name__ == "__main__":  # before the heavy imports, so that --help and typing errors answer at once
    FLAGS = start(parse_flags, ParaphraseSettings)

from cli.script import say
from cli.tables import format_table
from config import ANSWERS
from datasets import (
    ParaphraseDetectionDataset,
    ParaphraseDetectionTestDataset,
    load_paraphrase_data,
)
from datasets.augmentation import augment, check_augmentation, describe
from datasets.batching import MEAN_LENGTH, some_rows
from datasets.paraphrase import format_rows
from datasets.tsv import format_answers
from errors import UserError
from evaluation import accuracy, answer_token, commonest, macro_f1, predict_paraphrase, word_overlap
from files import check_writable, write_text
from handin.checks import check_answers, say_faults
from models.paraphrase_gpt import ParaphraseGPT
from training.assembly import assemble, load_trained, open_session
from training.inputs import content_hash
from training.processes import in_first_process, predict_rows

TASK = "paraphrase_detection"


def main(settings, given):
    session = open_session(TASK, settings, given, "paraphrase")
    run, settings, accelerator = session.run, session.settings, session.accelerator
    data, predict_only = settings.data, settings.run.checkpoint
    for path in (data.para_dev_out, data.para_test_out):
        check_writable(path)
    if settings.augmentation.augment and not predict_only:
        check_augmentation(settings.augmentation)
    train_rows = [] if predict_only else load_paraphrase_data(data.para_train)
    train_rows = some_rows(train_rows, settings.training.train_rows, settings.training.seed)
    dev_rows = load_paraphrase_data(data.para_dev, split="dev")
    test_rows = load_paraphrase_data(data.para_test, split="test")

    tuned = assemble(settings)
    model, context = ParaphraseGPT(tuned.gpt2, settings.head, settings.pooling), tuned.gpt2.context
    dev = ParaphraseDetectionDataset(dev_rows, tuned.tokenizer, context, model.aligns)
    test = ParaphraseDetectionTestDataset(test_rows, tuned.tokenizer, context, model.aligns)
    if predict_only:
        session.begin(tuned.fingerprint)
    else:
        begin_and_train(session, tuned, model, train_rows, dev, dev_rows)
    figures = load_trained(session, model)
    if settings.inference.merge:
        tuned.merge()
    answers, batch_size = {}, settings.inference.eval_batch_size
    for path, dataset in ((data.para_dev_out, dev), (data.para_test_out, test)):
        answers[path] = predict_rows(predict_paraphrase, model, dataset, batch_size, accelerator, path)
        text = format_answers("Predicted_Is_Paraphrase", dataset.ids, answers[path], ANSWERS.values())
        in_first_process(write_text, path, text)
        in_first_process(say_faults, check_answers, path, "pairs", dataset.ids)
    if accelerator.is_main_process:
        figures |= report(train_rows, dev_rows, dev, answers, data)
        say("\n" + format_table(figures, "Paraphrase detection"), end="")
        run.report({"figures": figures})


def begin_and_train(session, tuned, model, train_rows, dev, dev_rows):
    """Make the training rows, begin the run, train."""
    settings, accelerator = session.settings, session.accelerator
    more_rows = augmented_rows(train_rows, settings, accelerator)
    rows = train_rows + more_rows
    if settings.data.swap_questions:
        rows = both_orders(rows)
    batches = session.batches(ParaphraseDetectionDataset(rows, tuned.tokenizer, tuned.gpt2.context, model.aligns))
    inputs = {
        "training pairs": content_hash(rows, settings.data.para_train),
        "dev pairs": content_hash(dev_rows, settings.data.para_dev),
    }
    session.begin(tuned.fingerprint, inputs, batches)
    if settings.augmentation.augment:
        in_first_process(write_text, session.run.folder / "augmented.csv", format_rows(more_rows))

    def evaluate(model):
        batch_size = settings.inference.eval_batch_size
        answers = predict_rows(predict_paraphrase, model, dev, batch_size, accelerator, "dev")
        figures = dev_figures(dev, answers)
        return {"score": figures["dev accuracy"]} | figures

    session.loop(model, tuned.after_step).fit(batches, tuned.loss(answer_loss), evaluate)


def augmented_rows(rows, settings, accelerator):
    """What augmentation adds to the training rows; made by the main process, known to all."""
    if not settings.augmentation.augment:
        return []
    device = accelerator.device
    more, counts = in_first_process(augment, rows, settings.augmentation, settings.training.seed, device)
    say(describe(more, counts))
    return more


def both_orders(rows):
    """The rows, and again with their questions swapped."""
    return rows + [(second, first, label, identifier) for first, second, label, identifier in rows]


def answer_loss(model, batch):
    mean_length = batch[MEAN_LENGTH][0] if MEAN_LENGTH in batch else None
    return model(
        batch["token_ids"],
        batch["attention_mask"],
        labels=batch["labels"],
        mean_length=mean_length,
        token_type_ids=batch.get("token_type_ids"),
    )


def dev_figures(dev, answers):
    truths = [answer_token(label) for label in dev.labels]
    predictions = [answers[identifier] for identifier in dev.ids]
    return {"dev accuracy": accuracy(predictions, truths), "dev macro-F1": macro_f1(predictions, truths)}


def report(train_rows, dev_rows, dev, answers, data):
    """What was predicted, {name: text}, beside what needs no model; the trees only where there are training rows."""
    figures = {name: f"{value:.4f}" for name, value in dev_figures(dev, answers[data.para_dev_out]).items()}
    floors = {"always the commoner answer": [commonest(dev.labels)] * len(dev)}
    if train_rows:
        try:
            floors["trees over word overlap"] = [chance > 0.5 for chance in word_overlap(train_rows, dev_rows)]
        except UserError as error:
            say(str(error))
    for name, labels in floors.items():
        reached = dev_figures(dev, dict(zip(dev.ids, map(answer_token, labels), strict=True)))
        figures[name] = "{:.4f} dev accuracy, {:.4f} macro-F1".format(*reached.values())
    for path, chosen in answers.items():
        yes = sum(answer == ANSWERS["yes"] for answer in chosen.values())
        figures[path] = f"{len(chosen)} pairs, {100 * yes / len(chosen):.1f} % yes"
    return figures


if __name__ == "__main__":
    run_script(main, *FLAGS)
