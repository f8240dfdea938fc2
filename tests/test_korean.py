"""Korean: files, names and consoles of Korean students; and the Korean pages, kept in step with the English ones."""

import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
import unicodedata
import warnings
from pathlib import Path

import pytest

import classifier
import paraphrase_detection
import sonnet_generation
import submission
from cli.flags import parse_flags
from cli.script import run_script, say
from cli.tables import columns_of, format_table
from config import CLASSES, DecodingSettings, TranslationSettings
from datasets import ParaphraseDetectionDataset, load_paraphrase_data, load_sentiment_data, load_sonnets, load_tokenizer
from datasets.corpus import Corpus
from datasets.sonnets import format_sonnets, head_of
from datasets.translation import load_pairs
from decoding.writer import SonnetWriter
from errors import UserError
from files import check_writable, read_text, write_text
from handin.checks import check_sonnets, load_input, read_hand_in
from models.gpt2 import GPT2Model
from reporting.plots import curves
from tests.helpers import MINI, mostly_slow
from tests.inputs import ROOT, run
from tests.pages import differences, sections_of, slug

LINES = "봄비가 온다,창을 두드려,잠을 깨운다,나는 앉아서,빗소릴 센다,강은 흐르고,산은 푸르고,새는 또 울고,길은 멀어도,"
LINES = (LINES + "발은 가볍다,해가 저물면,달이 떠온다,문을 열어라,네가 왔구나").split(",")
POEM, BACKWARDS = "\n".join(LINES), "\n".join(LINES[::-1])
STANZAS = "\n\n".join("\n".join(LINES[start : start + 4]) for start in range(0, 14, 4))
SONNETS = f"소네트\n지은이: 이 과제의 학생\n\n1\n\n{STANZAS}\n\n2\n\n{BACKWARDS}\n"
PAIRS = (
    "\tid\tsentence1\tsentence2\tis_duplicate\n"
    "0\tㄱ-1\t서울에서 부산까지 얼마나 걸리나요?\t부산까지 서울에서 가는 데 걸리는 시간은?\t1.0\n"
    '1\tㄱ-2\t"""미세 조정""이란 무엇인가요?"\t소네트는 몇 줄인가요?\t0.0\n'
)
REVIEWS = "\tid\tsentence\tsentiment\n0\t가\t이 영화, 정말 좋았다 .\t4\n1\t나\t두 시간이 아까웠다 .\t0\n"
TRANSLATIONS = "I drink tea.\t나는 차를 마신다.\nShe reads a book.\t그녀는 책을 읽는다.\n"
READERS = {  # name: (text, what reads it)
    "sonnets": (SONNETS, load_sonnets),
    "pairs": (PAIRS, load_paraphrase_data),
    "reviews": (REVIEWS, lambda path: load_sentiment_data(path, CLASSES["sst"])),
    "translation": (TRANSLATIONS, lambda path: load_pairs(str(path))),
    "hand-in": (format_sonnets([POEM]), read_hand_in),
    "input of a hand-in": (PAIRS, lambda path: load_input(path, "pairs")),
    "corpus": (SONNETS, lambda path: len(Corpus(Path(path).parent).cuts)),
}


@pytest.fixture(params=READERS)
def reader(request):
    return READERS[request.param]


# --- what the readers make of it ----------------------------------------------------------------------------------


def test_sonnets_in_korean_are_read_whole(tmp_path):
    (tmp_path / "소네트.txt").write_text(SONNETS, encoding="utf-8")
    first, second = load_sonnets(tmp_path / "소네트.txt")
    assert (first, second) == (STANZAS, BACKWARDS)
    assert head_of(first).splitlines() == LINES[:3]


def test_headings_in_korean_are_read(tmp_path):
    text = f"머리말\n\n소네트 제1번\n\n{POEM}\n\n소네트 제2번\n\n{POEM}\n"
    (tmp_path / "소네트.txt").write_text(text, encoding="utf-8")
    assert load_sonnets(tmp_path / "소네트.txt") == [POEM, POEM]


def test_headings_without_digits_are_one_clear_line(tmp_path):
    (tmp_path / "소네트.txt").write_text(f"머리말\n\n소네트 첫째\n\n{POEM}\n", encoding="utf-8")
    with pytest.raises(UserError, match="holds no sonnet: each must follow a line with its number"):
        load_sonnets(tmp_path / "소네트.txt")


def test_questions_and_reviews_in_korean_are_read_and_cleaned(tmp_path):
    (tmp_path / "질문.csv").write_text(PAIRS, encoding="utf-8")
    (tmp_path / "영화평.csv").write_text(REVIEWS, encoding="utf-8")
    assert load_paraphrase_data(tmp_path / "질문.csv") == [
        ("서울에서 부산까지 얼마나 걸리나요 ?", "부산까지 서울에서 가는 데 걸리는 시간은 ?", 1, "ㄱ-1"),
        ('"미세 조정"이란 무엇인가요 ?', "소네트는 몇 줄인가요 ?", 0, "ㄱ-2"),
    ]
    reviews = load_sentiment_data(tmp_path / "영화평.csv", CLASSES["sst"])
    assert reviews == [("이 영화, 정말 좋았다 .", 4, "가"), ("두 시간이 아까웠다 .", 0, "나")]


def test_a_question_that_is_cut_ends_with_a_whole_letter(tokenizer):
    """Korean letters are three bytes, that is up to three tokens: a cut may go through one."""
    rows = [("가나다라마바사" * 12, "아자차카타파하" * 12, 1, "x")]
    for length in range(90, 96):
        (ids,) = ParaphraseDetectionDataset(rows, tokenizer, length).token_ids
        text = tokenizer.decode(ids.tolist())
        assert len(ids) <= length and "\ufffd" not in text and text.endswith('? Answer "yes" or "no": ')


# --- how it was saved ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line_end", ["\n", "\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_utf_8_with_and_without_a_mark_is_read_the_same(tmp_path, reader, encoding, line_end, capsys):
    text, read = reader
    (tmp_path / "plain").mkdir()
    plain, other = tmp_path / "plain" / "글.txt", tmp_path / "글.txt"
    plain.write_bytes(text.encode())
    wanted = read(plain)
    plain.unlink()
    plain.parent.rmdir()
    other.write_bytes(text.replace("\n", line_end).encode(encoding))
    assert read(other) == wanted
    assert "\ufeff" not in capsys.readouterr().out


@pytest.mark.parametrize("encoding, said", [("cp949", "CP949"), ("utf-16", "UTF-16")])
def test_another_encoding_is_one_line_that_says_how_to_convert(tmp_path, reader, encoding, said):
    text, read = reader
    path = tmp_path / "글.txt"
    path.write_bytes(text.encode(encoding))
    with pytest.raises(UserError) as error:
        read(path)
    line = str(error.value)
    assert line.startswith(f"{path} is ") and "save it as UTF-8" in line and said in line and "\n" not in line
    if encoding == "cp949":
        assert line.endswith("CP949: in Excel that is the type CSV UTF-8, else iconv -f CP949 -t UTF-8 OLD > NEW")


@pytest.mark.parametrize(
    "data",
    [
        "Köln, été, naïve, Ærø".encode("latin-1"),
        SONNETS.encode()[:200] + b"\xff" + SONNETS.encode()[200:],
        b"\xff\xc0\x80",
    ],
    ids=["Latin-1", "UTF-8 with one damaged byte", "noise"],
)
def test_what_is_not_plainly_korean_is_called_nothing(tmp_path, data):
    (tmp_path / "text.txt").write_bytes(data)
    with pytest.raises(UserError, match=r"is not UTF-8 text \(byte \d+\): save it as UTF-8$"):
        read_text(tmp_path / "text.txt")


# --- what files are called ----------------------------------------------------------------------------------------

FORMS = ("NFC", "NFD")


@pytest.mark.parametrize("form", FORMS)
def test_names_in_both_unicode_forms_are_read_and_written(tmp_path, form):
    folder = tmp_path / unicodedata.normalize(form, "과제 폴더")
    path = folder / unicodedata.normalize(form, "소네트 모음.txt")
    write_text(path, SONNETS)
    assert len(load_sonnets(path)) == 2
    assert [file.name for file in folder.iterdir()] == [path.name]  # as it was given


@pytest.mark.parametrize("form", FORMS)
def test_a_name_in_the_other_form_is_named(tmp_path, form):
    """macOS unpacks a name taken apart (NFD); typed elsewhere it is another one, and looks the same."""
    other = FORMS[1 - FORMS.index(form)]
    path = tmp_path / unicodedata.normalize(form, "과제") / unicodedata.normalize(form, "소네트.txt")
    write_text(path, SONNETS)
    asked = tmp_path / unicodedata.normalize(other, "과제") / unicodedata.normalize(other, "소네트.txt")
    if asked.exists():
        pytest.skip("this file system takes both forms for one")
    with pytest.raises(UserError, match="is there in another Unicode form: type it with the Tab key") as error:
        load_sonnets(asked)
    assert repr(str(path)) in str(error.value)
    with pytest.raises(UserError, match=r"없는 파일.txt does not exist: check the path[^;]*$"):
        load_sonnets(tmp_path / "없는 파일.txt")


@pytest.mark.parametrize("letters, form", [(83, "NFC"), (27, "NFD")])
def test_what_may_be_written_can_be(tmp_path, letters, form):
    """A Korean letter is three bytes, nine where it is taken apart: a long name is one of 255 bytes, not letters."""
    path = tmp_path / (unicodedata.normalize(form, "한" * letters) + ".txt")
    check_writable(path)
    write_text(path, "글")
    assert os.listdir(tmp_path) == [path.name]


# --- consoles -----------------------------------------------------------------------------------------------------


class Console(io.TextIOWrapper):
    """A terminal of an encoding, as strict as Python's own."""

    def __init__(self, encoding):
        super().__init__(io.BytesIO(), encoding=encoding, errors="strict", write_through=True)

    def isatty(self):
        return True

    def shown(self):
        return self.buffer.getvalue().decode(self.encoding)


@contextlib.contextmanager
def console(encoding):
    """Within this context stdout and stderr, (out, err), are such terminals."""
    out, err = Console(encoding), Console(encoding)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield out, err


CONSOLES = pytest.mark.parametrize("encoding", ["cp949", "ascii"])
HARD = "한글, é, \ufffd, ▁, 🙂"  # CP949 has the first of them


@CONSOLES
def test_say_and_print_show_what_the_console_has(encoding):
    with console(encoding) as (out, _):
        say(HARD)  # in somebody's own script, which has not asked for `run_script`
        run_script(print, HARD)
    wanted = "한글, ?, ?, ?, ?\n" if encoding == "cp949" else "??, ?, ?, ?, ?\n"
    assert out.shown().replace(os.linesep, "\n") == 2 * wanted


@CONSOLES
def test_an_error_about_a_name_that_cannot_be_shown_is_still_one_line(encoding, tmp_path):
    with console(encoding) as (_, err), pytest.raises(SystemExit) as stop:
        run_script(load_sonnets, tmp_path / "🙂 없는 파일.txt")
    assert stop.value.code == 2 and err.shown().startswith("error: ") and err.shown().count("\n") == 1


def write_inputs(folder):
    """Files of all tasks, in Korean."""
    numbered = "".join(f"\n{n}\n\n{POEM}\n" for n in range(1, 5))
    write_text(folder / "소네트.txt", f"머리말\n{numbered}")
    write_text(folder / "앞부분.txt", f"머리말\n\n5\n\n{head_of(POEM)}\n")
    write_text(folder / "질문.csv", PAIRS)
    write_text(folder / "시험.csv", "\tid\tsentence1\tsentence2\n0\tㄱ-3\t몇 시인가요?\t지금 몇 시죠?\n")
    reviews = "\tid\tsentence\tsentiment\n0\t가\t정말 좋았다 .\t1\n1\t나\t아까웠다 .\t0\n"
    write_text(folder / "영화평.csv", reviews)
    write_text(folder / "영화평_시험.csv", "0\t\tid\tsentence\n0\t0.0\t다\t괜찮았다 .\n")


REVIEW_FLAGS = " ".join(
    f"--{name}_{split} {'영화평_시험.csv' if split == 'test' else '영화평.csv'}"
    for name in CLASSES
    for split in ("train", "dev", "test")
)
SCRIPTS = {
    sonnet_generation: "--sonnet_path 소네트.txt --gold_sonnet_path 소네트.txt --held_out_sonnet_path 앞부분.txt "
    "--sonnet_out 결과/소네트.txt --sonnet_dev_out 결과/dev.txt --max_new_tokens 9 --score_seeds 1",
    paraphrase_detection: "--para_train 질문.csv --para_dev 질문.csv --para_test 시험.csv --para_dev_out 결과/dev.csv "
    "--para_test_out 결과/test.csv",
    classifier: f"--predictions 결과 {REVIEW_FLAGS}",
}


@CONSOLES
@pytest.mark.parametrize("script", mostly_slow(SCRIPTS), ids=lambda script: script.__name__)
def test_the_scripts_run_on_korean_files_and_consoles(script, encoding, model_folder, tmp_path, monkeypatch):
    """Data, names and the run's folder are Korean, a terminal's bars are drawn, and nothing ends in a traceback."""
    monkeypatch.chdir(tmp_path)
    write_inputs(tmp_path)
    shutil.copytree(model_folder, "모델")
    words = f"{SCRIPTS[script]} --model_path 모델 --lora --epochs 1 --run_dir 실험/첫째"
    with console(encoding) as (out, err):
        run_script(run, script, words.split())
        if script is paraphrase_detection:
            run_script(submission.check_one, "결과/test.csv", "시험.csv")
            assert ("결과/test.csv: 1 answers, in order" in out.shown()) == (encoding == "cp949")
    assert "epoch 1/1: 100%|#" in err.shown()  # what CP949 lacks, the blocks of a bar, is not drawn
    assert ("결과/" in out.shown()) == (encoding == "cp949")
    assert any((tmp_path / "결과").iterdir())
    if script is sonnet_generation:
        assert load_sonnets(tmp_path / "결과/소네트.txt")[0].splitlines()[:3] == LINES[:3]
        check_sonnets(tmp_path / "결과/소네트.txt", [head_of(POEM)])


@CONSOLES
def test_half_letters_that_a_model_writes_can_be_shown_written_and_read_again(encoding, tmp_path):
    """The mini model has read English: after Korean it puts bytes together that are no letters."""
    prompt = head_of(POEM)
    settings = DecodingSettings(temperature=50.0, top_p=1.0, max_new_tokens=100)
    writer = SonnetWriter(GPT2Model.from_pretrained(MINI).eval(), load_tokenizer(MINI), settings, batch_size=8)
    texts = [best.text for best, *_ in writer.write([prompt] * 8, seed=0)]
    assert "\ufffd" in "".join(texts)
    with console(encoding) as (out, _):
        run_script(say, "\n".join(texts))
    assert "?" in out.shown()
    write_text(tmp_path / "소네트.txt", format_sonnets(texts))
    assert check_sonnets(tmp_path / "소네트.txt", [prompt] * 8) == texts


@pytest.mark.slow
@CONSOLES
def test_the_real_processes_on_such_a_console(encoding, tmp_path):
    """The translation of a sample, which prints Korean, and a check of a file with a Korean name."""
    write_inputs(tmp_path)
    environment = os.environ | {"PYTHONIOENCODING": encoding, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    sample = [f"--{split}_pairs={ROOT}/data/sample/translation-{split}.tsv" for split in ("train", "dev", "test")]
    for command in (
        ["translation.py", *sample, "--steps=2", "--eval_every=2", "--layers=1", "--run_dir", "실험/번역"],
        ["submission.py", "check", "소네트.txt", "--input", "없는 파일.txt"],
    ):
        done = subprocess.run(
            [sys.executable, ROOT / command[0], *command[1:]], cwd=tmp_path, env=environment, capture_output=True
        )
        shown = (done.stdout + done.stderr).decode(encoding)
        assert "Traceback" not in shown and done.returncode == (0 if command[0] == "translation.py" else 2), shown
        assert ("실험/번역" in shown or "소네트.txt" in shown) == (encoding == "cp949")


# --- what is drawn and aligned ------------------------------------------------------------------------------------


def test_tables_are_aligned_by_what_a_terminal_shows():
    table = format_table({"full": {"손실": "4.5"}, "미세 조정": {"손실": "10.25"}}, "실험")
    assert table == "실험\n----\n            손실\nfull         4.5\n미세 조정  10.25\n"
    assert columns_of("한글") == columns_of(unicodedata.normalize("NFD", "한글")) == 4


def test_names_of_runs_in_korean_are_drawn():
    lines = {f"소네트-{name}": [(1, 2.0), (2, 1.0)] for name in ("lora", "full")}
    plot = curves("loss", "손실", lines, "step", "loss")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "소네트-lora" in plot.svg()
    assert plot.png().startswith(b"\x89PNG")


def test_settings_in_korean_are_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path / "설정.toml", '# 번역 실험\nrun_dir = "실험/번역"\n')
    settings, _ = parse_flags(TranslationSettings, ["--settings", "설정.toml"])
    assert settings.run.run_dir == "실험/번역"
    (tmp_path / "설정.toml").write_bytes("# 번역 실험\n".encode("cp949"))
    with pytest.raises(UserError, match=r"is not UTF-8 text \(byte 2\): save it as UTF-8; it looks like CP949"):
        parse_flags(TranslationSettings, ["--settings", "설정.toml"])


# --- the Korean pages ---------------------------------------------------------------------------------------------

PAGES = {  # (English, Korean): how they are compared
    ("README.md", "README.ko.md"): {"tree": "How to read the code"},
    ("docs/methods.md", "docs/methods.ko.md"): {"first": True},
}
BOTH = pytest.mark.parametrize("english, korean", PAGES)


def page(name):
    return (ROOT / name).read_text(encoding="utf-8")


@BOTH
def test_a_korean_page_is_in_step_with_the_english_one(english, korean):
    """Headings, blocks of code, flags, figures, links and tables are the same; a line says what is not, and where."""
    found = differences(english, page(english), korean, page(korean), **PAGES[english, korean])
    assert not found, "\n" + "\n".join(found)


@BOTH
def test_each_page_links_to_the_other_at_its_top(english, korean):
    assert f"[한국어]({Path(korean).name})" in "\n".join(page(english).splitlines()[:4])
    assert f"[English]({Path(english).name})" in "\n".join(page(korean).splitlines()[:4])


@pytest.mark.parametrize("name", [name for names in PAGES for name in names])
def test_links_lead_somewhere(name):
    for target in re.findall(r"\]\(([^)]+)\)", page(name)):
        path, _, anchor = target.partition("#")
        path = (ROOT / name).parent / path if path else ROOT / name
        assert path.exists(), f"{name}: {target}"
        anchors = [slug(section.title) for section in sections_of(path.read_text(encoding="utf-8"))] if anchor else [""]
        assert anchor in anchors, f"{name}: {target}"


@pytest.mark.parametrize(
    "before, after, section, said",
    [
        ("0.6650", "0.6400", "처음 실행하기", ": 'pairs: dev accuracy  "),
        ("--lora --lr 3e-3 --epochs 8", "--lora --lr 3e-3 --epochs 9", "감성 분석", "code, line "),
        ("약 1.3 MB", "약 1.4 MB", "처음 실행하기", "figures: '1.4' not in the English (line "),
        ("| 0.72 |", "| 0.7 |", "속도", "figures: '0.72' missing (English line "),
        (
            "`--save_minutes`(10)",
            "`--save_minute`(10)",
            "무엇이 잘못될",
            "code in the text: '--save_minutes' missing (English line ",
        ),
        ("(docs/sentiment.md)", "(docs/decoding.md)", "감성 분석", "links: 'docs/sentiment.md' missing (English line "),
        ("## 번역", "### 번역", "번역", "a heading of level 3, not 2"),
        ("\n## 번역\n", "\n", "", " headings, README.ko.md "),
        ("      plots.py  ", "      plot.py  ", "코드 읽는 순서", "code, line "),
        ("| LoRA | 줄여서", "| LoRA | | 줄여서", "주제별 플래그", "rows of tables: 'row 5 with 2 cells' missing"),
    ],
)
def test_what_has_drifted_is_said_with_its_section_and_line(before, after, section, said):
    text, names = page("README.ko.md"), ("README.md", "README.ko.md")
    assert before in text
    found = differences(names[0], page(names[0]), names[1], text.replace(before, after, 1), **PAGES[names])
    assert len(found) <= 2 and section in found[0] and said in "\n".join(found), found
