"""Back-translation (Sennrich, Haddow & Birch 2016, arXiv 1511.06709): a text into another language and back again.

The translators are Marian models (Junczys-Dowmunt et al. 2018), loaded by transformers from the hub or from folders.
What has been translated is kept in a SQLite file, keyed by text and model, and written after every batch: a run that is
stopped goes on where it was, and the next run asks no model at all.
"""

import hashlib
import importlib.util
import sqlite3
import zlib
from functools import cached_property
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from tqdm import tqdm

from errors import UserError, check

LONGEST = 256  # tokens of a translation
TOKENIZER_FILES = ("source.spm", "target.spm", "vocab.json")


class TranslationCache:
    """Translations on disk. path: the SQLite file, made if need be. Raises UserError, also for a damaged file.

    SQLite checks how its file is built, not what it says: each row has a checksum. (Those of older caches have none.)
    """

    def __init__(self, path):
        self.path = path
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            self.file = sqlite3.connect(path, timeout=60)
            self.file.execute(
                "CREATE TABLE IF NOT EXISTS translations (model TEXT, source TEXT, translation TEXT, "
                "checksum INTEGER, PRIMARY KEY (model, source)) WITHOUT ROWID"
            )
            found = self.file.execute("PRAGMA quick_check").fetchone()
            columns = [row[1] for row in self.file.execute("PRAGMA table_info(translations)")]
            if columns == ["model", "source", "translation"]:
                self.file.execute("ALTER TABLE translations ADD COLUMN checksum INTEGER")
        except (OSError, sqlite3.Error, UnicodeDecodeError) as error:
            raise UserError(
                f"the cache {path} cannot be opened ({str(error)[:80]}): choose another place, or remove it"
            ) from error
        check(found == ("ok",), f"the cache {path} is damaged ({str(found)[:80]}): remove it, and it is made again")

    def known(self, model):
        """{source: translation} of a model."""
        try:
            rows = self.file.execute(
                "SELECT source, translation, checksum FROM translations WHERE model = ?", (model,)
            ).fetchall()
        except (sqlite3.Error, UnicodeDecodeError, OverflowError) as error:
            raise UserError(
                f"the cache {self.path} cannot be read ({str(error)[:80]}): if it is damaged, remove it, and it is "
                "made again"
            ) from error
        for source, translation, checksum in rows:
            whole = isinstance(source, str) and isinstance(translation, str)
            whole = whole and checksum in (None, _checksum(source, translation))
            check(whole, f"the cache {self.path} is damaged (it holds other texts): remove it, and it is made again")
        return {source: translation for source, translation, _ in rows}

    def add(self, model, translations):
        """Keep {source: translation}, all or nothing."""
        rows = [(model, *pair, _checksum(*pair)) for pair in translations.items()]
        try:
            with self.file:
                self.file.executemany("INSERT OR REPLACE INTO translations VALUES (?, ?, ?, ?)", rows)
        except sqlite3.Error as error:
            fault = str(error)[:80]
            raise UserError(f"cannot write {self.path} ({fault}): make room; what was translated is kept") from error


def _checksum(source, translation):
    return zlib.crc32(f"{source}\0{translation}".encode())


class MarianTranslator:
    """model: a folder, or a name on the hub. Loaded when first used. Raises UserError."""

    def __init__(self, model, device="cpu", beams=4):
        self.name, self.device, self.beams = model, device, beams
        self.folder = self._find()
        self.model = None

    @cached_property
    def key(self):
        """What the cache knows the model by: its files and the search."""
        return f"{_fingerprint(self.folder)}-beams{self.beams}"

    def _find(self):
        if Path(self.name).is_dir():
            return Path(self.name)
        files = ["*.json", "*.spm", "model.safetensors", "pytorch_model.bin"]
        try:
            return Path(snapshot_download(self.name, allow_patterns=files))
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
            raise UserError(
                f"the translation model {self.name} cannot be had ({type(error).__name__}): check the name and the "
                "network, or give a folder"
            ) from error

    def translate(self, texts):
        """The translations of a list of texts, as one batch."""
        if self.model is None:
            self._load()
        batch = self.tokenizer(list(texts), return_tensors="pt", padding=True, truncation=True).to(self.device)
        with torch.no_grad():
            ids = self.model.generate(**batch, num_beams=self.beams, do_sample=False, max_length=LONGEST)
        return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def _load(self):
        from transformers import MarianMTModel, MarianTokenizer, logging

        logging.set_verbosity_error()
        missing = [name for name in TOKENIZER_FILES if not (self.folder / name).is_file()]
        if missing:
            raise UserError(f"{self.name} is no Marian translation model ({missing[0]} is missing): give another")
        try:
            self.tokenizer = MarianTokenizer.from_pretrained(self.folder)
            self.model = MarianMTModel.from_pretrained(self.folder).to(self.device).eval()
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise UserError(f"{self.name} is no Marian translation model ({error}): give another") from error


def check_packages():
    """Raise UserError where the optional packages are missing."""
    missing = [name for name in ("transformers", "sentencepiece") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"--augment back_translation needs the package {missing[0]}: pip install -r requirements-extra.txt"
        )


def _fingerprint(folder):
    """16 hex digits over the files that make the model."""
    digest = hashlib.sha256()
    for path in sorted(Path(folder).iterdir()):
        if path.suffix in (".json", ".spm", ".safetensors", ".bin"):
            digest.update(path.name.encode())
            with open(path, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def translate_all(texts, translator, cache, batch_size):
    """{text: translation} of every text; only those that the cache lacks are translated.

    The batches (of similar length, the longest first) depend on the texts alone, and the cache takes whole batches: a
    run that was stopped makes the same ones as a run that was not.
    """
    known = cache.known(translator.key)
    order = sorted(set(texts), key=lambda text: (-len(text), text))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    missing = [batch for batch in batches if not all(text in known for text in batch)]
    with tqdm(total=sum(map(len, missing)), desc=f"translating, {translator.name}", unit="text", disable=None) as bar:
        for batch in missing:
            translations = dict(zip(batch, translator.translate(batch), strict=True))
            cache.add(translator.key, translations)
            known |= translations
            bar.update(len(batch))
    return {text: known[text] for text in order}


def back_translate(texts, forward, backward, cache, batch_size=32):
    """{text: the text there and back}. forward, backward: MarianTranslators; cache: a TranslationCache."""
    there = translate_all(texts, forward, cache, batch_size)
    back = translate_all([text for text in there.values() if text], backward, cache, batch_size)
    return {text: back.get(there[text], "") for text in there}
