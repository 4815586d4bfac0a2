"""Which rank a process is, from what launchers put into the environment."""

import pytest

from megatron_ngpt.config.place import Place, first_host, read_place, variables
from megatron_ngpt.errors import ConfigError

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "h", "MASTER_PORT": "1"}
SRUN = {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "4211",
        "SLURM_JOB_NODELIST": "gpu[03-04,9]"}


def test_launchers_are_told_apart():
    assert read_place({}) == Place(0, 1, 0)
    assert read_place(TORCHRUN) == Place(3, 4, 1)
    assert read_place(SRUN) == Place(5, 8, 1)
    assert read_place(SRUN | TORCHRUN) == Place(3, 4, 1)
    assert read_place({"RANK": "1", "WORLD_SIZE": "2"}, local_rank=1) == Place(1, 2, 1)


def test_torch_finds_its_variables():
    assert variables(read_place(TORCHRUN), TORCHRUN) == {}
    assert variables(Place(), {}) == {
        "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    assert variables(read_place(SRUN), SRUN) == {
        "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "gpu03", "MASTER_PORT": "24211"}


@pytest.mark.parametrize(("hosts", "first"), [
    ("node7", "node7"), ("a,b", "a"), ("gpu[03-05,9],login1", "gpu03"), ("rack[2,5]-n", "rack2-n"), ("x[10]", "x10"),
    ("", "127.0.0.1"),
])
def test_the_first_host_of_a_slurm_list(hosts, first):
    assert first_host(hosts) == first


@pytest.mark.parametrize(("environment", "said"), [
    ({"RANK": "0"}, "WORLD_SIZE: missing"),
    ({"WORLD_SIZE": "2"}, "RANK: missing"),
    ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK = 'x': must be a whole number"),
    ({"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "RANK = 2: must be 0 to 1"),
    ({"SLURM_PROCID": "0"}, "SLURM_NTASKS: missing"),
])
def test_an_incomplete_environment_is_refused(environment, said):
    with pytest.raises(ConfigError, match=said):
        read_place(environment)
