"""The course's check of the model: the last hidden states of two sentences, one padded, against transformers' GPT-2.

python sanity_check.py [--model_size gpt2 | --model_path FOLDER]

Where neither the hub nor its cache has the weights, a small random model that transformers saved stands in.
"""

import argparse

from cli.flags import FlagParser
from cli.script import run_script, start
from config import MODEL_SIZES


def parse(arguments=None):
    parser = FlagParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_size", choices=MODEL_SIZES, default="gpt2")
    parser.add_argument("--model_path", help="local folder in Hugging Face layout, instead of a size")
    return parser.parse_args(arguments)


if __name__ == "__main__":  # before the heavy imports, so that --help and typing errors answer at once
    OPTIONS = start(parse)

import tempfile

import torch

from errors import UserError, check
from formats.hub import find_model
from models.gpt2 import GPT2Model

TOKENS = [[101, 7592, 2088, 102, 0, 0, 0, 0], [101, 7592, 15756, 2897, 2005, 17953, 2361, 102]]  # the course's
MASK = [[1, 1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1]]
TOLERANCE = 1e-5  # of the largest number: fp32 (the course allows 1e-1)


def main(options):
    try:
        import transformers
    except ImportError as error:
        raise UserError("the check compares with transformers: pip install -r requirements-extra.txt") from error
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        if options.model_path:
            model = str(find_model(options.model_path))
        else:
            try:
                model = str(find_model(options.model_size))
            except UserError as error:
                print(f"{error}; a random model stands in")
                model = save_random_model(transformers, folder)
        compare(model, transformers.GPT2Model.from_pretrained(model).eval())


def save_random_model(transformers, folder):
    """The folder, in which transformers has saved a small GPT-2 with weights that show an error in any of them."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_embd=64, n_layer=3, n_head=4, initializer_range=0.2)
    model = transformers.GPT2LMHeadModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # biases and norms start at 0 and 1
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


@torch.no_grad()
def compare(model, theirs):
    """Raise UserError where our GPT-2 and transformers' (theirs), both of the folder `model`, differ."""
    ours = GPT2Model.from_pretrained(model).eval()
    tokens, mask = torch.tensor(TOKENS) % ours.config.vocab_size, torch.tensor(MASK)
    found = ours(tokens, mask)["last_hidden_state"][mask.bool()]
    wanted = theirs(input_ids=tokens, attention_mask=mask).last_hidden_state[mask.bool()]
    difference = ((found - wanted).abs().max() / wanted.abs().max()).item()
    size = f"{sum(p.numel() for p in ours.parameters()):,} parameters"
    check(difference < TOLERANCE, f"the hidden states of {model} ({size}) differ by {difference:.1e} of the largest")
    print(f"Your GPT2 implementation is correct! ({size}; the largest difference is {difference:.1e} of the largest)")


if __name__ == "__main__":
    run_script(main, OPTIONS)
