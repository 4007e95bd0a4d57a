"""Which names of folders and cells mean a part of a data set."""

import pytest

from finetune.data.split_names import find_splits, split_of


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *(
            (name, "train")
            for name in ("train", "Training", "TRN", "train_set", "Train Set", "trainset", "TrainImages")
        ),
        *((name, "validation") for name in ("val", "valid", "Validation", "dev", "val2017", "val-data")),
        *((name, "test") for name in ("Testing", "tst", "eval", "dataset-test", "test_images", "holdout", "test1")),
        *((name, None) for name in ("seg_train", "train_station", "trained", "latest", "cat", "", "train-val")),
        *((name, None) for name in ("训练", "train猫", "contest", "validity")),
    ],
)
def test_what_a_name_means(name, split):
    assert split_of(name) == split


def test_names_with_another_word_count_where_two_differ_in_the_split_alone():
    assert find_splits(["seg_train", "seg_test", "seg_pred"]) == {"seg_train": "train", "seg_test": "test"}
    assert find_splits(["train_station", "test_tube", "cat"]) == {}
    assert find_splits(["seg_train"]) == {} and find_splits(["a_train", "b_test"]) == {}


def test_eval_is_the_test_unless_another_is():
    assert find_splits(["train", "eval"]) == {"train": "train", "eval": "test"}
    assert find_splits(["train", "val", "evaluation"])["evaluation"] == "test"
    assert find_splits(["train", "Eval", "test"]) == {"train": "train", "Eval": "validation", "test": "test"}


def test_very_many_names_take_no_time():
    assert len(find_splits([f"{i}_{part}" for i in range(20_000) for part in ("train", "test")])) == 40_000
