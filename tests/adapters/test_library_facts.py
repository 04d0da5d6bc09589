"""What refusals and caveats claim of the installed libraries is true of them, as they run.

A failure here means that a release changed: the refusal or caveat may have to go.
"""

from __future__ import annotations

import copy

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from torch import Tensor, nn


def test_slstm_of_unequal_sizes_does_forget_in_the_wheel() -> None:
    module = snn.SLSTM(2, 3)
    x, state = torch.rand(4, 2), (torch.rand(4, 3), torch.rand(4, 3))
    assert torch.equal(module(x, *state)[2], module(x)[2])


def test_coba_lif_does_ignore_its_input_in_the_wheel() -> None:
    module = norse.CobaLIFCell(3, 4)
    assert torch.equal(module(torch.zeros(1, 3))[1].g_e, module(torch.ones(1, 3))[1].g_e)


def test_reset_delay_of_rsynaptic_does_fail_in_the_wheel() -> None:
    with pytest.raises(TypeError):
        snn.RSynaptic(0.8, 0.9, linear_features=3, reset_delay=False)(torch.rand(1, 3))


def test_an_lstm_never_reaches_a_threshold_of_one() -> None:
    module = snn.SLSTM(3, 3, init_hidden=True)
    nn.init.constant_(module.lstm_cell.bias_ih, 50.0)  # every gate open
    for _ in range(20):
        assert not module(torch.randn(5, 3)).any()
    assert module.mem.min() == 1


def test_lapicque_fails_at_the_second_backward() -> None:
    module = snn.Lapicque(beta=0.9, learn_beta=True)
    module(torch.ones(1, 2))[1].sum().backward()
    module.mem = torch.zeros(0)
    with pytest.raises(RuntimeError, match="second time"):
        module(torch.ones(1, 2))[1].sum().backward()


def test_inhibition_resets_the_losers_too() -> None:
    with pytest.warns(UserWarning, match="unstable"):
        module = snn.Leaky(0.9, inhibition=True)
    spikes, membrane = module(torch.tensor([[2.0, 3.0]]))
    assert spikes.tolist() == [[0, 1]]
    _, membrane = module(torch.zeros(1, 2))
    assert torch.allclose(membrane, torch.tensor([[0.8, 1.7]]))


def test_associative_leaky_drifts() -> None:
    torch.manual_seed(0)
    module = snn.AssociativeLeaky(3, 2, 2, 4, use_q_projection=False)
    membranes: list[Tensor] = []
    module.state_quant = lambda state: membranes.append(state) or state
    x = torch.rand(40, 2, 3)
    module(x)
    state, errors = torch.zeros(2, 2, 2), []
    for t in range(40):
        write = module.to_v(x[t])[:, :, None] * module.to_k(x[t])[:, None, :]
        state = state * torch.sigmoid(module.to_alpha(x[t]))[:, None, :] + write
        errors.append((membranes[0][t] - state.flatten(1)).abs().max().item())
    assert errors[2] < 1e-5
    assert errors[39] > 0.05


def test_the_refractory_period_is_a_count_of_timesteps() -> None:
    for dt in (0.001, 0.0005):
        module, state, spikes = norse.LIFRefracCell(dt=dt), None, []
        for _ in range(13):
            z, state = module(torch.full((1, 1), 100.0), state)
            spikes.append(int(z))
        assert [t for t, z in enumerate(spikes) if z] == [0, 6, 12]


def test_lifmcrefrac_spikes_while_refractory() -> None:
    module = norse.LIFMCRefracRecurrentCell(1, 2, g_coupling=torch.tensor([[0.0, 0.0], [5.0, 0.0]]))
    _, state = module(torch.zeros(1, 1))
    state = state._replace(
        lif=state.lif._replace(v=torch.tensor([[0.9, 0.0]])), rho=torch.full((1, 2), 4.0)
    )
    z, _ = module(torch.zeros(1, 1), state)
    assert z.tolist() == [[0, 1]]


def test_a_deep_copy_trains_autapses() -> None:
    for module, trained in (
        (norse.LIFRecurrent(2, 3), False),
        (copy.deepcopy(norse.LIFRecurrent(2, 3)), True),
    ):
        module(5 * torch.rand(9, 4, 2))[0].sum().backward()
        assert bool(module.recurrent_weights.grad.diagonal().any()) is trained
