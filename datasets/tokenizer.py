"""GPT-2's byte-level BPE tokenizer, read from a model folder by Hugging Face's `tokenizers` library."""

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from config import END_OF_TEXT, UserError


def load_tokenizer(folder):
    """The Tokenizer of a model folder, from tokenizer.json, or from vocab.json and merges.txt. Raises UserError."""
    folder = Path(folder)
    try:
        if (folder / "tokenizer.json").is_file():
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            tokenizer = Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            tokenizer.decoder = decoders.ByteLevel()
            tokenizer.add_special_tokens([END_OF_TEXT])
        else:
            raise UserError(f"{folder} holds no tokenizer: it needs tokenizer.json, or vocab.json and merges.txt")
    except UserError:
        raise
    except Exception as error:  # the library raises plain Exception for a damaged file
        raise UserError(f"the tokenizer in {folder} cannot be read ({error}): download the model again") from error
    if tokenizer.token_to_id(END_OF_TEXT) is None:
        raise UserError(f"the tokenizer in {folder} has no token {END_OF_TEXT}: it is not GPT-2's")
    tokenizer.no_padding()  # a tokenizer.json may carry settings of its own
    tokenizer.no_truncation()
    return tokenizer
