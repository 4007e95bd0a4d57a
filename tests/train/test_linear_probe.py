"""The linear probe: the optimum of logistic regression, and which penalties are tried."""

import pytest
import torch
import torch.nn.functional as F

from finetune.train import linear_probe
from finetune.train.linear_probe import fit_linear_head


def test_the_solver_reaches_the_optimum_of_logistic_regression():
    from sklearn.linear_model import LogisticRegression

    torch.manual_seed(0)
    labels = torch.arange(240) % 4
    features = torch.randn(240, 10) * torch.linspace(0.1, 20, 10) + 2 * torch.randn(4, 10)[labels]
    held = (features[:60], labels[:60])
    head = fit_linear_head(features[60:], labels[60:], 4, held)
    again = fit_linear_head(features[60:], labels[60:], 4, held)
    assert torch.equal(head.weight, again.weight) and torch.equal(head.bias, again.bias)
    mean, std = features[60:].double().mean(0), features[60:].double().std(0, correction=0)
    inputs, targets = ((features[60:] - mean) / std).numpy(), labels[60:].numpy()
    best = min(
        (
            LogisticRegression(C=1 / (penalty * 180), max_iter=5000, tol=1e-8).fit(inputs, targets)
            for penalty in [10.0**k for k in range(-6, 2)]
        ),
        key=lambda m: F.cross_entropy(
            torch.from_numpy(m.predict_log_proba(((features[:60] - mean) / std).numpy())), labels[:60]
        ),
    )
    expected = torch.from_numpy(best.predict_proba(inputs))
    torch.testing.assert_close(head(features[60:]).double().softmax(1), expected, rtol=0, atol=5e-3)


def test_the_solver_does_without_validation_images_and_with_dead_features():
    torch.manual_seed(0)
    labels = torch.arange(30) % 3
    features = torch.cat([torch.randn(30, 4) + 3 * torch.randn(3, 4)[labels], torch.zeros(30, 2)], 1)
    head = fit_linear_head(features, labels, 3, None)
    assert (head(features).argmax(1) == labels).double().mean() > 0.9
    assert torch.isfinite(head.weight).all()


@pytest.mark.parametrize(
    ("losses", "best", "tried"),
    [
        ([5, 4, 4.5, 3, 3.5, 3.6, 1, 0], 3, 6),  # one that is no better is not the end, two in a row are
        ([5, 5, 5, 1], 0, 3),
        ([8, 7, 6, 5, 4, 3, 2, 1], 7, 8),
    ],
)
def test_penalties_are_tried_until_two_in_a_row_are_no_better(losses, best, tried, monkeypatch):
    seen = []

    def path(train, held, classes, balance):
        for number, loss in enumerate(losses):
            seen.append(loss)
            yield torch.full((2, 3), float(number)), torch.zeros(2), float(loss)

    monkeypatch.setattr(linear_probe, "_penalty_path", path)
    features, labels = torch.tensor([[1.0, -1.0, 1.0], [-1.0, 1.0, -1.0]]), torch.tensor([0, 1])  # standardised
    head = fit_linear_head(features, labels, 2, (features, labels))
    assert torch.equal(head.weight, torch.full((2, 3), float(best))) and len(seen) == tried
