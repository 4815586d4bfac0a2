"""Which rank a process is, from what launchers put into the environment."""

import pytest

from megatron_ngpt.config.place import Place, first_host, hosts, read_place, variables
from megatron_ngpt.errors import ConfigError

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "h", "MASTER_PORT": "1"}
SRUN = {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "4211",
        "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "8", "SLURM_JOB_NODELIST": "gpu[03-04,9]"}


MPIRUN = {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "1", "MASTER_ADDR": "node1"}


def test_launchers_are_told_apart():
    assert read_place({}) == Place(0, 1, 0)
    assert read_place(TORCHRUN) == Place(3, 4, 1)
    assert read_place(SRUN) == Place(5, 8, 1)
    assert read_place(SRUN | TORCHRUN) == Place(3, 4, 1)
    assert read_place(MPIRUN) == Place(3, 4, 1)
    assert read_place(MPIRUN | SRUN) == Place(5, 8, 1)
    assert read_place({"RANK": "1", "WORLD_SIZE": "2"}, local_rank=1) == Place(1, 2, 1)


def test_torch_finds_its_variables():
    assert variables(read_place(TORCHRUN), TORCHRUN) == {}
    assert variables(Place(), {}) == {
        "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    assert variables(read_place(SRUN), SRUN) == {
        "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "gpu03", "MASTER_PORT": "24211"}
    assert variables(read_place(MPIRUN), MPIRUN) == {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(("hosts", "first"), [
    ("node7", "node7"), ("a,b", "a"), ("gpu[03-05,9],login1", "gpu03"), ("rack[2,5]-n", "rack2-n"), ("x[10]", "x10"),
    ("", "127.0.0.1"),
])
def test_the_first_host_of_a_slurm_list(hosts, first):
    assert first_host(hosts) == first


@pytest.mark.parametrize(("environment", "said"), [
    ({"RANK": "0"}, "WORLD_SIZE: missing"),
    ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK = 'x': must be a whole number"),
    ({"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "RANK = 2: must be 0 to 1"),
    ({"RANK": "1", "WORLD_SIZE": "2"}, "LOCAL_RANK: missing"),
    ({"SLURM_PROCID": "0", "SLURM_STEP_ID": "0"}, "SLURM_STEP_NUM_TASKS = '': must be"),
])
def test_an_incomplete_environment_is_refused(environment, said):
    with pytest.raises(ConfigError, match=said):
        read_place(environment)


@pytest.mark.parametrize("left", [
    {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},                # the shell of sbatch
    {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_STEP_ID": "4294967291"},
    {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_STEP_ID": "4294967290"},
    {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"},                                                           # the shell of salloc
    {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0"},
    {"WORLD_SIZE": "4", "MASTER_ADDR": "node1", "MASTER_PORT": "29500", "LOCAL_RANK": "2"},               # exported for srun
    {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"},
    {"LOCAL_RANK": "3"},
])
def test_what_no_launcher_set_for_this_process_makes_no_rank(left):
    assert read_place(left) == Place()
    assert (left | variables(Place(), left))["WORLD_SIZE"] == "1"


def test_a_step_has_its_own_tasks_hosts_and_port():
    """`srun -n 2 -w gpu9` within a job of 8 tasks; and what was exported for another run is not this rank's."""
    step = SRUN | {"SLURM_STEP_ID": "3", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_STEP_NODELIST": "gpu9", "WORLD_SIZE": "8"}
    assert read_place(step) == Place(1, 2, 1)
    assert variables(read_place(step), step) == {
        "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "gpu9", "MASTER_PORT": "27238"}
    assert read_place({name: value for name, value in SRUN.items() if name != "SLURM_STEP_NUM_TASKS"}) == Place(5, 8, 1)


def test_one_rank_needs_no_number_on_its_host():
    assert read_place({"RANK": "0", "WORLD_SIZE": "1"}) == Place(0, 1, 0)


@pytest.mark.parametrize("port", ["x", "0", "70000"])
def test_a_port_that_is_none_is_refused(port):
    with pytest.raises(ConfigError, match=f"MASTER_PORT = '{port}': must be a whole number from 1 to 65535"):
        variables(Place(0, 2, 0), TORCHRUN | {"MASTER_PORT": port})


@pytest.mark.parametrize(("environment", "place", "said"), [
    ({}, Place(), "1 rank on 1 host"), (TORCHRUN, Place(3, 4, 1), "4 ranks"),
    (TORCHRUN | {"CROSS_SIZE": "2"}, Place(3, 4, 1), "4 ranks on 2 hosts"),
    (SRUN | {"SLURM_STEP_NUM_NODES": "1"}, Place(5, 8, 1), "8 ranks on 1 host"),
])
def test_the_first_line_of_a_run_says_who_is_there(environment, place, said):
    assert hosts(environment, place) == said
