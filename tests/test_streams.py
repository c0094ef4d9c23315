"""Text streams: one order of sequences for any number of processes, and a state to resume from."""

import json
import signal
import threading

import datasets
import pytest
import torch

import lft_edu as lft
from lft_edu.training.callbacks import Evaluation
from lft_edu.training.checkpoints import Checkpoints
from lft_edu.training.sampling import places
from lft_edu.training.streams import AHEAD, StreamError, TokenStream, num_readers


def files(count: int, rows: int = 20, block: int = 4):
    """A stream of ``count`` files; block ``i`` of file ``f`` begins with the number 1000 f + i."""

    def generate(names):
        for name in names:
            yield from ({"input_ids": [1000 * name + i] * block} for i in range(rows))

    return datasets.IterableDataset.from_generator(generate, gen_kwargs={"names": list(range(count))})


def read(stream: TokenStream, steps, batch: int, turns: int = 1, world: int = 1) -> list[list[int]]:
    """The first tokens of the blocks of each step, as ``world`` processes read them together; in order of number."""
    streams = stream if isinstance(stream, list) else [stream]
    found, whole = [], batch * turns * world
    for step in steps:
        row = {}
        for rank, one in enumerate(streams):
            for turn in range(turns):
                numbers = (step * whole + places(batch, turn, rank, world)).tolist()
                blocks = one[numbers]["input_ids"]
                row |= {number: block[0] for number, block in zip(numbers, blocks.tolist(), strict=True)}
        found.append([row[number] for number in sorted(row)])
    return found


def test_the_number_of_readers_is_a_power_of_two():
    assert [num_readers(files(n)) for n in (1, 2, 3, 4, 30, 40)] == [1, 2, 2, 4, 16, 32]


def test_every_file_has_one_reader():
    """Thirty files, as the Pile has, sixteen readers: eight processes open up to four each, none another's."""
    stream = TokenStream(files(30, rows=2))
    found = [stream._reader(reader).sequence(position)[0] for reader in range(16) for position in range(4)]
    assert {token // 1000 for token in found} == set(range(30))
    opened = []
    for rank in range(8):
        stream = TokenStream(files(30))
        stream[places(4, 0, rank, 8).tolist()]
        opened.append(set(stream.readers))
    assert sum(map(len, opened)) == len(set().union(*opened)) == 16


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_the_order_does_not_depend_on_the_number_of_processes(count):
    alone = read(TokenStream(files(count)), range(6), batch=8)
    seen = len({token for step in alone for token in step})
    assert seen == {1: 20, 2: 40, 3: 44, 4: 48}[count]  # of three files, one has a reader of its own and starts over
    for batch, turns, world in ((4, 2, 1), (4, 1, 2), (2, 2, 2), (2, 1, 4)):
        streams = [TokenStream(files(count)) for _ in range(world)]
        assert read(streams, range(6), batch, turns, world) == alone


def test_a_process_opens_its_own_files_only():
    stream = TokenStream(files(4))
    read([stream], range(3), batch=4)  # rank 0 of 1 reads all four
    assert set(stream.readers) == {0, 1, 2, 3}
    stream = TokenStream(files(4))
    for step in range(3):
        stream[(step * 8 + places(4, 0, 1, 2)).tolist()]
    assert set(stream.readers) == {1, 3}


@pytest.mark.parametrize("world", [1, 2])
def test_a_state_continues_exactly_even_with_another_number_of_processes(world):
    whole = read(TokenStream(files(4)), range(30), batch=8)  # 240 blocks: three times around 80
    for stop in (1, 7, 19):
        streams = [TokenStream(files(4)) for _ in range(world)]
        read(streams, range(stop), 8 // world, 1, world)
        state = {}
        for stream in streams:
            state |= json.loads(json.dumps(stream.state()))
        again = TokenStream(files(4))
        again.restore(state)
        assert read(again, range(stop, 30), batch=8) == whole[stop:]


def test_a_state_is_of_what_was_handed_out_not_of_what_was_read_ahead():
    stream = TokenStream(files(1, rows=500))
    read(stream, range(3), batch=2)
    assert len(stream.ahead) == AHEAD
    assert stream.state()["0"]["position"] == 6


def test_a_packed_text_stream_goes_on_in_the_middle_of_a_batch_of_texts(bundled, tmp_path):
    tokenizer = bundled[1]
    texts = datasets.IterableDataset.from_generator(lambda: ({"text": f"x_{i} = {i}\n" * 30} for i in range(300)))
    blocks = texts.map(
        lambda batch: {"input_ids": lft.corpora.pack(batch["text"], tokenizer, 16)},
        batched=True, batch_size=64, remove_columns=["text"],
    )  # fmt: skip
    whole = [TokenStream(blocks)[[i]]["input_ids"][0].tolist() for i in (0, 1)]
    first, all_of_it = TokenStream(blocks), TokenStream(blocks)
    wanted = [all_of_it[list(range(i, i + 5))]["input_ids"].tolist() for i in range(0, 200, 5)]
    assert whole == wanted[0][:2]
    for i in range(0, 100, 5):
        first[list(range(i, i + 5))]
    second = TokenStream(blocks)
    second.restore(first.state())
    assert [second[list(range(i, i + 5))]["input_ids"].tolist() for i in range(100, 200, 5)] == wanted[20:]


def test_places_in_files_of_parquet_are_kept_reader_by_reader(tmp_path):
    """Another path through `datasets` than generated rows. What is asked for first, as `fit` does, is block 0."""
    for name in (0, 1):
        rows = [{"input_ids": [1000 * name + i] * 4} for i in range(60)]
        datasets.Dataset.from_list(rows).to_parquet(tmp_path / f"{name}.parquet")
    names = [str(tmp_path / f"{name}.parquet") for name in (0, 1)]
    corpus = datasets.load_dataset("parquet", data_files=names, split="train", streaming=True)
    corpus = corpus.map(lambda batch: {"input_ids": batch["input_ids"]}, batched=True, batch_size=20)
    alone = read(TokenStream(corpus), range(6), batch=8)
    streams = [TokenStream(corpus) for _ in range(2)]
    for stream in streams:
        stream[[0]]
    assert read(streams, range(3), batch=4, world=2) == alone[:3]
    state = streams[0].state() | streams[1].state()
    untouched = TokenStream(corpus)
    untouched.restore(json.loads(json.dumps(state)))
    assert untouched.state() == state  # nothing read yet
    for _ in range(2):  # reading on from a state leaves the state as it was
        again = TokenStream(corpus)
        again.restore(state)
        assert read(again, range(3, 6), batch=8) == alone[3:]


def broken(after: int, how):
    """A stream of two files that gives ``after`` blocks of each, then ``how()``."""

    def generate(names):
        for name in names:
            generator = torch.Generator().manual_seed(name)
            for i in range(40):
                if i == after:
                    how()
                yield {"input_ids": torch.randint(1, 300, (8,), generator=generator).tolist()}

    return datasets.IterableDataset.from_generator(generate, gen_kwargs={"names": [1, 2]})


def test_a_stream_that_breaks_off_leaves_the_steps_that_were_done(teacher, tmp_path):
    def fit(path, stream, student=None):
        student = lft.splice(teacher, (2, 5), lft.Flow())
        options = {
            "max_steps": 10,
            "batch_size": 8,
            "checkpoint": path,
            "save_every": 4,
            "resume": True,
            "progress": False,
        }
        lft.fit(student, teacher, stream, **options)
        return student.operator.state_dict()

    def fail():
        raise OSError("the line went dead")

    whole = fit(tmp_path / "whole", broken(40, fail))
    with pytest.raises(StreamError, match=r"OSError: the line went dead.*--resume"):
        fit(tmp_path / "parts", broken(26, fail))  # blocks 0–51: six steps, not a multiple of save_every
    assert [path.stem for path in Checkpoints(tmp_path / "parts").files()] == ["step-000000006", "step-000000004"]
    parts = fit(tmp_path / "parts", broken(40, fail))
    assert all(torch.equal(whole[k], parts[k]) for k in whole)


def test_a_silent_stream_can_be_stopped(teacher, tmp_path):
    """A signal is heeded while the text is waited for: what was done is saved, and the process can end."""
    silence = threading.Event()
    threading.Timer(6, lambda: signal.raise_signal(signal.SIGTERM)).start()  # six steps take long on a busy machine
    student = lft.splice(teacher, (2, 5), lft.Flow())
    options = {"max_steps": 10, "batch_size": 8, "checkpoint": tmp_path, "progress": False}
    with pytest.raises(KeyboardInterrupt, match="waiting for text"):
        lft.fit(student, teacher, broken(26, silence.wait), **options)
    silence.set()
    assert Checkpoints(tmp_path).newest_step() == 6
    assert all(thread.daemon for thread in threading.enumerate() if thread.name == "stream")


def test_streams_of_one_data_set_do_not_disturb_each_other():
    corpus = files(1, rows=400)
    alone = read(TokenStream(corpus), range(40), batch=4)
    one, other = TokenStream(corpus), TokenStream(corpus)
    for step in range(20):
        assert read(one, [step], batch=4) == alone[step : step + 1]
        read(other, [2 * step], batch=4)
    again = TokenStream(corpus)
    again.restore(one.state())
    assert read(again, range(20, 30), batch=4) == alone[20:30]


def test_an_empty_stream_says_so():
    with pytest.raises(ValueError, match="less than one sequence"):
        TokenStream(files(1, rows=0))[[0]]


def test_a_resumed_run_on_a_stream_reads_nothing_twice(teacher, tmp_path):
    """The checkpoint knows the place: going on does not read the stream from its beginning."""
    opened = []

    def generate(names):
        for name in names:
            opened.append(name)
            generator = torch.Generator().manual_seed(name)
            for i in range(40):
                yield {"input_ids": torch.randint(1, 300, (8,), generator=generator).tolist(), "row": i}

    def stream():
        return datasets.IterableDataset.from_generator(generate, gen_kwargs={"names": [1, 2]})

    def fit(path, steps, stop=None):
        student = lft.splice(teacher, (2, 5), lft.Flow())
        options = {
            "max_steps": 12,
            "batch_size": 8,
            "checkpoint": path,
            "save_every": 4,
            "resume": True,
            "progress": False,
        }

        def halt(step):
            if stop:
                raise KeyboardInterrupt
            return {}

        try:
            lft.fit(student, teacher, stream(), callbacks=[Evaluation(halt)], evaluate_every=5, **options)
        except KeyboardInterrupt:
            assert stop
        return student.operator.state_dict()

    whole = fit(tmp_path / "whole", 12)
    fit(tmp_path / "parts", 12, stop=True)
    parts = fit(tmp_path / "parts", 12)
    assert all(torch.equal(whole[k], parts[k]) for k in whole)
    assert sorted(p.name for p in (tmp_path / "parts").iterdir()) == [
        "step-000000008.safetensors", "step-000000012.safetensors",
    ]  # fmt: skip
