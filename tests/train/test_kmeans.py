import itertools

import torch

from autoreg.network.config import NetworkConfig
from autoreg.network.network import Network
from autoreg.train.kmeans import assign, fit_centres, fit_decoder, fit_whitening, linear_clusters


def blobs(clusters: int, size: int, channels: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centres = 20 * torch.randn(clusters, channels, generator=generator, dtype=torch.float64)
    labels = torch.arange(clusters).repeat_interleave(size)
    return centres[labels] + torch.randn(len(labels), channels, generator=generator, dtype=torch.float64), labels


def same_partition(first: torch.Tensor, second: torch.Tensor) -> bool:
    return (
        len(set(zip(first.tolist(), second.tolist(), strict=True))) == len(set(first.tolist())) == len(set(second.tolist()))
    )


def test_whitened_features_are_uncorrelated_with_variance_one() -> None:
    features = torch.randn(500, 6, dtype=torch.float64) @ torch.randn(6, 6, dtype=torch.float64) + 7
    white = fit_whitening(features).apply(features)
    assert white.shape[1] <= 6
    torch.testing.assert_close(white.T @ white / 500, torch.eye(white.shape[1], dtype=torch.float64))
    torch.testing.assert_close(white.mean(dim=0), torch.zeros(white.shape[1], dtype=torch.float64), atol=1e-9, rtol=0)


def test_whitening_drops_what_holds_no_variance() -> None:
    features = torch.randn(300, 2).repeat(1, 50)  # rank two
    assert fit_whitening(features).projection.shape == (100, 2)
    constant = fit_whitening(torch.ones(10, 3))
    assert constant.apply(torch.ones(10, 3)).isfinite().all()


def test_clusters_are_found_and_the_seed_decides() -> None:
    points, labels = blobs(5, 60, 3)
    centres = fit_centres(points, 5, seed=0)
    assert same_partition(assign(points, centres)[0], labels)
    assert torch.equal(centres, fit_centres(points, 5, seed=0))


def test_few_points_are_solved_as_well_as_by_trying_every_partition() -> None:
    points = torch.randn(8, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def cost(labels: tuple[int, ...]) -> float:
        groups = [points[torch.tensor(labels) == group] for group in set(labels)]
        return sum(float((group - group.mean(dim=0)).square().sum()) for group in groups)

    best = min(cost(labels) for labels in itertools.product((0, 1), repeat=8))
    assert abs(assign(points, fit_centres(points, 2, seed=0))[1].sum().item() - best) < 1e-9


def test_the_largest_linear_function_is_the_nearest_centre() -> None:
    features = torch.randn(400, 5, dtype=torch.float64) * torch.arange(1.0, 6) + 3
    whitening = fit_whitening(features)
    white = whitening.apply(features)
    centres = fit_centres(white, 7, seed=1)
    weight, bias = linear_clusters(whitening, centres)
    assert torch.equal((features @ weight.T + bias).argmax(dim=1), assign(white, centres)[0])


def test_a_fitted_decoder_tells_the_clusters_of_its_features() -> None:
    network = Network(NetworkConfig(2, 4, 8, (8,), 2)).eval()
    features, labels = blobs(4, 50, 8)
    found = fit_decoder(network.decoder, features.float(), seed=0)
    assert same_partition(found, labels)
    with torch.no_grad():
        told = network.decoder(features.float().T[None, :, :, None])[0, :, :, 0].argmax(dim=0)
    assert same_partition(told, labels)
