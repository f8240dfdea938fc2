"""Back-translated question pairs without a neural model: Apertium's rules, which Debian and Ubuntu ship as packages.

    apt install apertium apertium-eng-spa
    python -m benchmarks.apertium_pairs --para_train data/quora-train.csv --out runs/quora-train-apertium.csv
    python paraphrase_detection.py --para_train runs/quora-train-apertium.csv ...

Writes a training file: the pairs of --para_train and, under the rules of --augment back_translation, those that came
back from the other language. Apertium (Forcada et al. 2011) translates word by word and mends the grammar; it is a real
translator for machines that no hub can be reached from, and cruder than a Marian model.
"""

import argparse
import shutil
import subprocess

from cli.script import run_script
from datasets import load_paraphrase_data
from datasets.augmentation import back_translated, describe
from datasets.back_translation import TranslationCache
from datasets.paraphrase import format_rows
from errors import check
from files import write_text


class Apertium:
    """A direction of an installed language pair (`apertium -l` lists them), in the place of a MarianTranslator."""

    def __init__(self, mode):
        self.name = self.key = f"apertium {mode}"
        self.mode = mode

    def translate(self, texts):
        """Paragraphs of one document are translated one by one; words it does not know stay as they are (-u)."""
        command = ["apertium", "-u", self.mode]
        done = subprocess.run(command, input="\n\n".join(texts) + "\n", capture_output=True, text=True)
        paragraphs = done.stdout.rstrip("\n").split("\n\n")
        check(done.returncode == 0, f"{' '.join(command)} failed: {(done.stderr or done.stdout).strip()[-300:]}")
        check(len(paragraphs) == len(texts), f"apertium gave {len(paragraphs)} paragraphs for {len(texts)}")
        return [" ".join(paragraph.split()) for paragraph in paragraphs]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--para_train", default="data/quora-train.csv")
    parser.add_argument("--forward", default="eng-spa", help="the way there (default: eng-spa)")
    parser.add_argument("--backward", default="spa-eng", help="and back (default: spa-eng)")
    parser.add_argument("--cache", default="runs/back_translations.sqlite")
    parser.add_argument("--out", default="runs/quora-train-apertium.csv")
    options = parser.parse_args()
    check(shutil.which("apertium"), "apertium is not installed: apt install apertium apertium-eng-spa")
    rows = load_paraphrase_data(options.para_train)
    translators = Apertium(options.forward), Apertium(options.backward)
    made, dropped = back_translated(rows, *translators, TranslationCache(options.cache), batch_size=1000)
    write_text(options.out, format_rows(rows + made))
    print(describe(made, {"Apertium": {"made": len(made), "dropped": dropped}}))
    print(f"{options.out}: {len(rows) + len(made)} pairs")


if __name__ == "__main__":
    run_script(main)
