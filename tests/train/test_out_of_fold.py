"""Out-of-fold probabilities come from other folds, and groups have one fold."""

import numpy as np
import torch

from finetune.data.quality import contradicted
from finetune.train.out_of_fold import FOLDS, folds_by_hash, out_of_fold


def clusters(count=400, seed=0):
    labels = torch.arange(count) % 4
    centres = torch.randn(4, 12, generator=torch.Generator().manual_seed(9))
    return centres[labels] + 0.4 * torch.randn(count, 12, generator=torch.Generator().manual_seed(seed)), labels


def test_keys_alone_decide_the_fold():
    folds = folds_by_hash([f"group {index // 4}" for index in range(400)])
    assert set(folds.tolist()) == set(range(FOLDS))
    assert (folds.reshape(-1, 4) == folds.reshape(-1, 4)[:, :1]).all()
    assert folds.tolist() == folds_by_hash([f"group {index // 4}" for index in range(400)]).tolist()


def test_turned_labels_are_contradicted():
    features, labels = clusters()
    turned = torch.arange(0, 400, 40)
    given = labels.clone()
    given[turned] = (given[turned] + 1) % 4
    found = out_of_fold(features, given, folds_by_hash([str(i) for i in range(400)]), 4)
    assert found.shape == (400, 4) and np.allclose(found.sum(1), 1)
    assert set(contradicted(given.numpy(), found).tolist()) == set(turned.tolist())


def test_a_label_has_no_part_in_its_own_fold():
    features, labels = clusters()
    folds = folds_by_hash([str(i) for i in range(400)])
    before = out_of_fold(features, labels, folds, 4)
    own = np.flatnonzero(folds == 2)
    swapped = labels.clone()
    swapped[own] = swapped[torch.from_numpy(np.roll(own, 1))]  # the same counts of classes
    assert np.allclose(out_of_fold(features, swapped, folds, 4)[own], before[own])
